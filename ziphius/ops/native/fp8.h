/* Products with matrices of e4m3 in blocks of 128 x 128 under one scale, as they lie. A part of linear.h.
 *
 * The bits of an e4m3 number, at the places of an fp32 one, are 2^-120 times it, subnormal ones too. Half of what is
 * missing goes to the activations, with the scale of the block, and the rest to the sums, so that neither leaves fp32's
 * range. NaN is not known: whoever loads a matrix looks for it.
 */
#pragma once

enum { BLOCK = 128 };

static const float TO_ACTIVATIONS = 0x1p64f, TO_SUMS = 0x1p56f;

/* The first n of sixteen numbers, 2^-120 times too small; the rest reads as zero. */
INLINE vf load_e4m3(const uint8_t *at, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __m128i bytes = n >= W ? _mm_loadu_si128((const __m128i *)at) : _mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), at);
    vi whole = (vi)_mm512_cvtepi8_epi32(bytes);
#else
    vb bytes = {0};
    memcpy(&bytes, at, (size_t)(n < W ? n : W));
    vi whole = __builtin_convertvector(bytes, vi);
#endif
    return (vf)((whole << 20) & (int32_t)0x87f00000);
}

/* The first n of sixteen activations from column k on. */
INLINE vf load_scaled(const float *x, int64_t k, int64_t n, const float *scale) {
    return load_n(x, k, n, 0) * (scale[k / BLOCK] * TO_ACTIVATIONS);
}

/* As dot_tile, w beginning at its first row, whose blocks have `scale`. For one token memory is the limit: lines of 64
 * bytes are read whole, for rows a power of two apart push each other out of the cache, and the next sixteen rows are
 * asked for in the order in which they lie. The sums are the same. */
INLINE vf e4m3_tile(const float *x, int64_t ldx, const uint8_t *w, const float *scale, int64_t rows, int64_t cols,
                    const int T) {
    const int R = SUMS / T;
    vf acc[SUMS];
    const uint8_t *row[SUMS];
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; i++) acc[i] = splat(0);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) row[r] = w + (r < rows ? r : rows - 1) * cols;
    int64_t k = 0;
    for (; T == 1 && k + LINE <= cols; k += LINE) {
        vf a[LINE / W];
#pragma GCC unroll 4
        for (int i = 0; i < LINE / W; i++) a[i] = load_scaled(x, k + i * W, W, scale);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            __builtin_prefetch(w + SUMS * (cols + k) + r * LINE, 0, 2);
#pragma GCC unroll 4
            for (int i = 0; i < LINE / W; i++) acc[r] += a[i] * load_e4m3(row[r] + k + i * W, W);
        }
    }
    for (; k < cols; k += W) {
        vf a[SUMS];
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) a[t] = load_scaled(x + t * ldx, k, cols - k, scale);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vf b = load_e4m3(row[r] + k, cols - k);
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) acc[t * R + r] += a[t] * b;
        }
    }
    return add_up(acc) * TO_SUMS;
}

/* As linear_dots, of a whole matrix; m0 is a multiple of sixteen, so that no tile leaves its block. */
INLINE void linear_e4m3(const float *x, int64_t ldx, int64_t n, const uint8_t *w, const float *scale, int64_t cols,
                        int64_t m0, int64_t m1, float *out, int64_t ldo) {
    int64_t blocks = round_up(cols, BLOCK) / BLOCK;
    for (int64_t m = m0; n < 4 && m < m1; m += SUMS)
        for (int64_t t = 0; t < n; t++)
            put_dots(e4m3_tile(x + t * ldx, ldx, w + m * cols, scale + m / BLOCK * blocks, m1 - m, cols, 1),
                     out + t * ldo + m, ldo, m1 - m, 1);
    for (int64_t m = m0; n >= 4 && m < m1; m += 4)
        for (int64_t t = 0; t < n; t += 4) {
            /* what is left of four tokens is taken with some of those before: the same sums once more */
            int64_t begin = n - t < 4 ? n - 4 : t;
            put_dots(e4m3_tile(x + begin * ldx, ldx, w + m * cols, scale + m / BLOCK * blocks, m1 - m, cols, 4),
                     out + begin * ldo + m, ldo, m1 - m, 4);
        }
}
