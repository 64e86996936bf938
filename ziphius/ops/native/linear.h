/* Activations times a matrix [rows][cols] as it lies in memory, for a few to a few hundred tokens.
 *
 * A token's result does not depend on which tokens stand beside it: every sum runs over the columns in one order, on one
 * path for all numbers of tokens. With AMX, bf16 matrices are read in tiles of 16 rows; everything else takes dot
 * products in vector registers.
 */
#pragma once
#include "vec.h"
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef struct {
    const void *data;
    int64_t half;
} Weight;

enum { SUMS = 16, TILE = 16, TILE_COLS = 32 }; /* accumulators of a dot tile; rows and bf16 columns of an AMX tile */

/* --- dot products --------------------------------------------------------------------------------------------------- */

/* Lane i of the result is the sum of x[i]'s lanes: each round adds pairs of vectors into one. */
INLINE vf add_up(const vf *x) {
    vf a[8], b[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = SHUFFLE(x[i], x[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23) +
               SHUFFLE(x[i], x[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        b[i] = SHUFFLE(a[i], a[i + 4], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23) +
               SHUFFLE(a[i], a[i + 4], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        a[i] = SHUFFLE(b[i], b[i + 2], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23) +
               SHUFFLE(b[i], b[i + 2], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return SHUFFLE(a[0], a[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23) +
           SHUFFLE(a[0], a[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* Lane t * (16/T) + r: x[t] · w[r], for T rows of x and 16/T rows of w; a row beyond the last is the last again. */
INLINE vf dot_tile(const float *x, int64_t ldx, const void *w, int64_t at, int64_t ldw, int64_t rows, int64_t cols,
                   int half, const int T) {
    const int R = SUMS / T;
    vf acc[SUMS];
    int64_t row[SUMS];
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; i++) acc[i] = splat(0);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) row[r] = at + (r < rows ? r : rows - 1) * ldw;
    int64_t k = 0;
    for (; k + W <= cols; k += W) {
        vf a[SUMS];
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) a[t] = load(x, t * ldx + k, 0);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vf b = load(w, row[r] + k, half);
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) acc[t * R + r] += a[t] * b;
        }
    }
    if (k < cols) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vf b = load_n(w, row[r] + k, cols - k, half);
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) acc[t * R + r] += load_n(x, t * ldx + k, cols - k, 0) * b;
        }
    }
    return add_up(acc);
}

INLINE void put_dots(vf sums, float *out, int64_t ldo, int64_t rows, const int T) {
    const int R = SUMS / T;
    float flat[SUMS];
    store(flat, 0, sums, 0);
    for (int t = 0; t < T; t++) memcpy(out + t * ldo, flat + t * R, (size_t)(rows < R ? rows : R) * 4);
}

/* out[n][m0..m1) = x[n] · w[m] for n tokens; w [·][cols] begins at element `at`. */
INLINE void linear_dots(const float *x, int64_t ldx, int64_t n, const void *w, int64_t at, int64_t cols, int64_t m0,
                        int64_t m1, float *out, int64_t ldo, int half) {
    if (n < 4) { /* one token at a time, sixteen rows: memory is the limit, and is read once for small matrices only */
        for (int64_t m = m0; m < m1; m += SUMS)
            for (int64_t t = 0; t < n; t++)
                put_dots(dot_tile(x + t * ldx, ldx, w, at + m * cols, cols, m1 - m, cols, half, 1), out + t * ldo + m,
                         ldo, m1 - m, 1);
        return;
    }
    for (int64_t m = m0; m < m1; m += 4) {
        int64_t t = 0;
        for (; t + 4 <= n; t += 4)
            put_dots(dot_tile(x + t * ldx, ldx, w, at + m * cols, cols, m1 - m, cols, half, 4), out + t * ldo + m, ldo,
                     m1 - m, 4);
        for (; t < n; t++) { /* the same sums, with three of the four tokens wasted */
            float last[4 * 4];
            put_dots(dot_tile(x + t * ldx, 0, w, at + m * cols, cols, m1 - m, cols, half, 4), last, 4, 4, 4);
            memcpy(out + t * ldo + m, last, (size_t)(m1 - m < 4 ? m1 - m : 4) * 4);
        }
    }
}

/* --- AMX ------------------------------------------------------------------------------------------------------------ */

#ifdef __AMX_BF16__

/* Whether the kernel lets this process use the tiles. */
static int amx_allowed(void) {
    static int state; /* 0 not asked, 1 yes, 2 no; asking twice is harmless */
    if (!state) state = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0 ? 1 : 2;
    return state == 1;
}

static void amx_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.columns[i] = 64, config.rows[i] = TILE;
    _tile_loadconfig(&config);
}

static void amx_end(void) { _tile_release(); }

/* Blocks of 16 tokens, each [cols/2][16 tokens][2]: what a tile instruction takes as its second factor. */
static void amx_pack(const float *x, int64_t ldx, int64_t n, int64_t cols, uint16_t *packed) {
    float pairs[TILE * TILE]; /* [token][pair of columns], two bf16 in the place of a float */
    for (int64_t n0 = 0; n0 < n; n0 += TILE, packed += TILE * cols) {
        int64_t count = n - n0 < TILE ? n - n0 : TILE;
        if (count < TILE) memset(pairs, 0, sizeof pairs);
        for (int64_t k = 0; k < cols; k += TILE_COLS) {
            for (int64_t t = 0; t < count; t++) {
                const float *row = x + (n0 + t) * ldx + k;
                store(pairs + t * TILE, 0, load(row, 0, 0), 1);
                store(pairs + t * TILE, W, load(row, W, 0), 1);
            }
            transpose16(pairs, TILE, (float *)(packed + k * TILE), TILE);
        }
    }
}

/* Rows m..m+15 of the result stand in `tile` as [row][token]; out gets [token][row]. */
INLINE void amx_put(const float *tile, float *out, int64_t ldo, int64_t count) {
    float turned[TILE * TILE];
    transpose16(tile, TILE, turned, TILE);
    for (int64_t t = 0; t < count; t++) memcpy(out + t * ldo, turned + t * TILE, sizeof(float) * TILE);
}

/* As linear_dots, for bf16 matrices with m0, m1 multiples of 16 and cols of 32; `packed` from amx_pack. */
static void linear_amx(const uint16_t *packed, int64_t n, const uint16_t *w, int64_t cols, int64_t m0, int64_t m1,
                       float *out, int64_t ldo) {
    float tile[TILE * TILE] __attribute__((aligned(64)));
    int64_t stride = cols * 2, block = TILE * cols;
    for (int64_t m = m0; m < m1; m += 2 * TILE) {
        int two = m + TILE < m1;
        const uint16_t *upper = w + m * cols, *lower = upper + TILE * cols;
        for (int64_t n0 = 0; n0 < n; n0 += 2 * TILE) {
            const uint16_t *left = packed + n0 / TILE * block, *right = left + block;
            int64_t count = n - n0 < TILE ? n - n0 : TILE, more = n - n0 - TILE;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t k = 0; k < cols; k += TILE_COLS) {
                _tile_loadd(4, upper + k, stride);
                _tile_loadd(6, left + k * TILE, 64);
                _tile_dpbf16ps(0, 4, 6);
                if (two) {
                    _tile_loadd(5, lower + k, stride);
                    _tile_dpbf16ps(1, 5, 6);
                }
                if (more > 0) {
                    _tile_loadd(7, right + k * TILE, 64);
                    _tile_dpbf16ps(2, 4, 7);
                    if (two) _tile_dpbf16ps(3, 5, 7);
                }
            }
            float *to = out + n0 * ldo + m;
            _tile_stored(0, tile, 64);
            amx_put(tile, to, ldo, count);
            if (two) {
                _tile_stored(1, tile, 64);
                amx_put(tile, to + TILE, ldo, count);
            }
            if (more > 0) {
                _tile_stored(2, tile, 64);
                amx_put(tile, to + TILE * ldo, ldo, more < TILE ? more : TILE);
                if (two) {
                    _tile_stored(3, tile, 64);
                    amx_put(tile, to + TILE * ldo + TILE, ldo, more < TILE ? more : TILE);
                }
            }
        }
    }
}

#else
INLINE int amx_allowed(void) { return 0; }
static void amx_begin(void) {}
static void amx_end(void) {}
#endif

/* --- either --------------------------------------------------------------------------------------------------------- */

/* Whether bf16 matrices of this shape go through the tiles. */
INLINE int takes_amx(int64_t rows, int64_t cols) { return amx_allowed() && rows % TILE == 0 && cols % TILE_COLS == 0; }

/* Floats of scratch that `linear` may need. */
INLINE int64_t linear_scratch(int64_t n, int64_t cols) { return round_up(n, TILE) * round_up(cols, TILE_COLS) / 2; }

/* out[n][m0..m1) = x[n] · w[m], w [rows][cols] beginning at element `at`. Where the tiles are used, x is rounded to bf16.
 * Several matrices may share one packing of x: `packed` is filled when *ready is 0, and *ready set. */
static void linear(const float *x, int64_t ldx, int64_t n, Weight w, int64_t at, int64_t rows, int64_t cols, int64_t m0,
                   int64_t m1, float *out, int64_t ldo, float *packed, int *ready) {
    if (m0 >= m1) return;
#ifdef __AMX_BF16__
    if (w.half && takes_amx(rows, cols) && m0 % TILE == 0 && m1 % TILE == 0) {
        if (!*ready) amx_pack(x, ldx, n, cols, (uint16_t *)packed);
        *ready = 1;
        linear_amx((const uint16_t *)packed, n, (const uint16_t *)w.data + at, cols, m0, m1, out, ldo);
        return;
    }
#else
    (void)rows, (void)packed, (void)ready;
#endif
    if (w.half)
        linear_dots(x, ldx, n, w.data, at, cols, m0, m1, out, ldo, 1);
    else
        linear_dots(x, ldx, n, w.data, at, cols, m0, m1, out, ldo, 0);
}
