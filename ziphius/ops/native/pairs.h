/* Products of bf16 and int8 matrices by pairs of 16-bit numbers, where the machine has such instructions and no AMX:
 * activations are rounded to bf16, or to 16-bit integers for int8 matrices, whose products add up exactly. A part of
 * linear.h.
 */
#pragma once
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAS_PAIRS

enum { PAIRED = 2 * W };  /* elements of a vector of 16-bit numbers */
enum { EXACT = 8192 };    /* columns whose products fit a 32-bit sum: 127 * LARGEST_ACTIVATION * EXACT / 16 < 2^31 */

/* Activations [n][ld] as 16-bit numbers, zeros after a row's end, with the scale of each row where they are integers. */
typedef struct {
    uint16_t *data;
    int64_t ld;
    float *scale;
} Halves;

static void pack_halves(const float *x, int64_t ldx, int64_t n, int64_t cols, Halves to, int int8) {
    for (int64_t t = 0; t < n; t++) {
        float inverse = int8 ? fit(x + t * ldx, cols, to.scale + t) : 1;
        for (int64_t k = 0; k < to.ld; k += W) {
            vf v = load_n(x, t * ldx + k, cols > k ? cols - k : 0, 0);
            __m512i whole = _mm512_cvtps_epi32((__m512)(v * inverse));
            vh h = int8 ? (vh)_mm512_cvtepi32_epi16(whole) : to_bf16(v);
            memcpy(to.data + t * to.ld + k, &h, sizeof h);
        }
    }
}

/* The first `n` of 32 elements of a matrix as 16-bit numbers; the rest is zero. */
INLINE __m512i load_pairs(const void *base, int64_t i, int64_t n, int kind) {
    __mmask32 kept = n >= PAIRED ? ~0u : (1u << n) - 1;
    if (kind == INT8) return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(kept, (const int8_t *)base + i));
    return _mm512_maskz_loadu_epi16(kept, (const uint16_t *)base + i);
}

/* The sums of T tokens and 16/T rows go on by `n` columns from k on, at most 32. `ahead`: where what is needed soon lies, or 0. */
INLINE void add_pairs(__m512i *sums, const uint16_t *x, int64_t ldx, const void *w, const int64_t *row, int64_t k,
                      int64_t n, int kind, const int T, int64_t ahead) {
    const int R = SUMS / T;
    __m512i a[SUMS];
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) a[t] = _mm512_loadu_si512(x + t * ldx + k);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        __m512i b = load_pairs(w, row[r] + k, n, kind);
        if (ahead) ask_ahead(w, row[r] + ahead + k, kind);
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
            __m512i *sum = sums + t * R + r;
            if (kind == INT8)
                *sum = _mm512_dpwssd_epi32(*sum, a[t], b);
            else
                *sum = (__m512i)_mm512_dpbf16_ps((__m512)*sum, (__m512bh)a[t], (__m512bh)b);
        }
    }
}

/* As dot_tile. */
INLINE vf pair_tile(const uint16_t *x, int64_t ldx, const void *w, int64_t at, int64_t ldw, int64_t rows, int64_t cols,
                    int kind, const int T, const int ahead) {
    const int R = SUMS / T;
    int64_t row[SUMS];
    vf total = splat(0), sums[SUMS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) row[r] = at + (r < rows ? r : rows - 1) * ldw;
    for (int64_t k = 0; k < cols;) {
        int64_t end = kind == INT8 && cols - k > EXACT ? k + EXACT : cols;
        __m512i acc[SUMS];
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++) acc[i] = _mm512_setzero_si512();
        for (; k + PAIRED <= end; k += PAIRED) add_pairs(acc, x, ldx, w, row, k, PAIRED, kind, T, ahead ? SUMS * ldw : 0);
        if (k < end) add_pairs(acc, x, ldx, w, row, k, end - k, kind, T, 0);
        k = end;
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++) sums[i] = kind == INT8 ? (vf)_mm512_cvtepi32_ps(acc[i]) : (vf)acc[i];
        total += add_up(sums);
    }
    return total;
}

/* As linear_dots; the result is still to be scaled where the matrix is int8. */
INLINE void linear_pairs(Halves x, int64_t n, const void *w, int64_t at, int64_t cols, int64_t m0, int64_t m1,
                         float *out, int64_t ldo, int kind) {
    if (n < 4) {
        for (int64_t m = m0; m < m1; m += SUMS)
            for (int64_t t = 0; t < n; t++)
                put_dots(pair_tile(x.data + t * x.ld, 0, w, at + m * cols, cols, m1 - m, cols, kind, 1, 1),
                         out + t * ldo + m, 0, m1 - m, 1);
        return;
    }
    int64_t rows = near_rows(cols * (kind == INT8 ? 1 : 2));
    for (int64_t t0 = 0; t0 < n; t0 += CHUNK)
        for (int64_t first = m0; first < m1; first += rows)
            for (int64_t t = t0; t < n && t < t0 + CHUNK; t += 4) {
                int64_t from = t + 4 <= n ? t : n - 4;
                for (int64_t m = first; m < m1 && m < first + rows; m += 4)
                    put_dots(pair_tile(x.data + from * x.ld, x.ld, w, at + m * cols, cols, m1 - m, cols, kind, 4, t == 0),
                             out + from * ldo + m, ldo, m1 - m, 4);
            }
}
#endif
