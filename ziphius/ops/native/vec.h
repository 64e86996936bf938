/* Sixteen floats at a time, in the compilers' own vector types: the same source serves AVX-512, AVX2 and NEON.
 *
 * Tensors are fp32 or bf16 (`half` says which); arithmetic is fp32. Functions are inlined with `half` a constant.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define W 16 /* floats in a vector */

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));
typedef int8_t vb __attribute__((vector_size(16)));
typedef float vf8 __attribute__((vector_size(32)));
typedef float vf4 __attribute__((vector_size(16)));

static const vi LANES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

INLINE vf splat(float x) { return x - (vf){0}; } /* not x + 0, which would lose the sign of -0 */
INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf vmax(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf vabs(vf x) { return (vf)((vi)x & 0x7fffffff); }

INLINE float hsum(vf x) {
    union { vf v; vf8 h[2]; } a = {x};
    union { vf8 v; vf4 h[2]; } b = {a.h[0] + a.h[1]};
    vf4 c = b.h[0] + b.h[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* May miss a NaN, as vmax does: whoever subtracts the result from x meets it again. */
INLINE float hmax(vf x) {
    x = vmax(x, SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    x = vmax(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    x = vmax(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    x = vmax(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    return x[0];
}

/* --- loads and stores ------------------------------------------------------------------------------------------- */

INLINE vf widen(vh h) {
#ifdef __AVX512F__ /* gcc 12 would make four instructions of it */
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

INLINE vf load(const void *base, int64_t i, int half) {
    if (half) {
        vh h;
        memcpy(&h, (const uint16_t *)base + i, sizeof h);
        return widen(h);
    }
    vf v;
    memcpy(&v, (const float *)base + i, sizeof v);
    return v;
}

/* Round to nearest even; a NaN stays one. */
INLINE vh to_bf16(vf x) {
#ifdef __AVX512BF16__ /* which takes denormals for zero */
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    vu u = (vu)x;
    vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    vu nan = (vu)(x != x);
    return __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), vh);
#endif
}

INLINE void store(void *base, int64_t i, vf x, int half) {
    if (half) {
        vh h = to_bf16(x);
        memcpy((uint16_t *)base + i, &h, sizeof h);
    } else {
        memcpy((float *)base + i, &x, sizeof x);
    }
}

/* The first n of sixteen; the rest reads as zero. */
INLINE vf load_n(const void *base, int64_t i, int64_t n, int half) {
    if (n >= W) return load(base, i, half);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __mmask16 kept = (__mmask16)((1u << n) - 1);
    if (half) return widen((vh)_mm256_maskz_loadu_epi16(kept, (const uint16_t *)base + i));
    return (vf)_mm512_maskz_loadu_ps(kept, (const float *)base + i);
#else
    float part[W] = {0};
    for (int64_t j = 0; j < n; j++) {
        if (half) {
            uint32_t u = (uint32_t)((const uint16_t *)base)[i + j] << 16;
            memcpy(part + j, &u, sizeof u);
        } else {
            part[j] = ((const float *)base)[i + j];
        }
    }
    return load(part, 0, 0);
#endif
}

INLINE void store_n(void *base, int64_t i, vf x, int64_t n, int half) {
    if (n >= W) {
        store(base, i, x, half);
    } else if (half) {
        vh h = to_bf16(x);
        memcpy((uint16_t *)base + i, &h, (size_t)n * 2);
    } else {
        memcpy((float *)base + i, &x, (size_t)n * 4);
    }
}

INLINE float load1(const void *base, int64_t i, int half) {
    if (!half) return ((const float *)base)[i];
    uint32_t u = (uint32_t)((const uint16_t *)base)[i] << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

INLINE void store1(void *base, int64_t i, float x, int half) {
    vf v = splat(x);
    store_n(base, i, v, 1, half);
}

/* to[j][i] = from[i][j] for 16 x 16 floats: four rounds of interleaving rows i and i + 8. */
INLINE void transpose16(const float *from, int64_t ld_from, float *to, int64_t ld_to) {
    vf r[W], s[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) r[i] = load(from, i * ld_from, 0);
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            s[2 * i] = SHUFFLE(r[i], r[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            s[2 * i + 1] = SHUFFLE(r[i], r[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) r[i] = s[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) store(to, i * ld_to, r[i], 0);
}

/* --- functions ---------------------------------------------------------------------------------------------------- */

/* exp to 1e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' expf). Below -87.3 it gives zero. */
INLINE vf vexp(vf x) {
#ifdef __AVX512F__
    __m512 y = _mm512_min_ps(_mm512_set1_ps(90.0f), (__m512)x); /* a NaN in the second operand comes through */
    vf n = (vf)_mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(1.44269504088896341f)), 8);
#else
    const vf shift = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vf y = choose(x > 88.72f, splat(88.72f), x);
    vf n = (y * 1.44269504088896341f + shift) - shift;
#endif
    vf r = (vf)y - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
#ifdef __AVX512F__
    __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
    return (vf)_mm512_maskz_scalef_ps(kept, (__m512)p, (__m512)n);
#else
    /* 2^n in two steps: n reaches 128, where 2^n alone would overflow. */
    vi whole = __builtin_convertvector(choose(x == x, n, splat(0)), vi);
    vi first = whole >> 1;
    vf scale = (vf)((first + 127) << 23), rest = (vf)((whole - first + 127) << 23);
    vf result = p * scale * rest;
    result = choose(x < -87.3f, splat(0), result);
    return choose(x > 88.72f, splat(INFINITY), result);
#endif
}

INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* A buffer of the calling thread, kept between calls: fresh memory costs a page fault every 4 KiB. */
INLINE float *scratch_of_thread(int64_t floats) {
    static _Thread_local float *buffer;
    static _Thread_local int64_t size;
    if (floats > size) {
        free(buffer);
        buffer = aligned_alloc(64, (size_t)round_up(floats * 4, 4096));
        size = buffer ? round_up(floats * 4, 4096) / 4 : 0;
    }
    return buffer;
}
