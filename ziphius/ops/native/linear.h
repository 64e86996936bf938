/* Activations times a matrix [rows][cols] as it lies in memory, for a few to a few hundred tokens.
 *
 * Matrices are fp32, bf16, int8 with one scale a row (the integers enter the products, the scale the result), or e4m3
 * with one scale a block (fp8.h).
 * A token's result does not depend on which tokens stand beside it: every sum runs over the columns in one order, on one
 * path for all numbers of tokens. With AMX, bf16 and int8 matrices are read in tiles of 16 rows, without it by pairs of
 * 16-bit numbers where the machine multiplies those (pairs.h); everything else takes dot products of fp32 numbers.
 */
#pragma once
#include "vec.h"
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef struct {
    const void *data;
    int64_t kind;
    const float *scale; /* INT8: of each row; FP8: of each block, [rows / 128][cols / 128] rounded up */
} Weight;

enum { FP32, BF16, INT8, FP8 };      /* the first two are what vec.h calls `half` */
enum { SUMS = 16 };                  /* accumulators of a tile of dot products */
enum { CHUNK = 128 };                /* tokens whose activations stay in the second cache while a matrix passes */
enum { NEAR_BYTES = 24 << 10 };      /* of a matrix, that stay in the first cache */
enum { TILE = 16, LINE = 64 };       /* rows and bytes a row of an AMX tile */
enum { LARGEST_ACTIVATION = 32512 }; /* 127 in the high byte */

INLINE int64_t bytes_of(Weight w, int64_t elements) { return elements * (w.kind == FP32 ? 4 : w.kind == BF16 ? 2 : 1); }

/* The first n of sixteen elements of a matrix; the rest reads as zero. */
INLINE vf load_kind(const void *base, int64_t i, int64_t n, int kind) {
    if (kind != INT8) return load_n(base, i, n, kind);
    const int8_t *at = (const int8_t *)base + i;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __m128i bytes = n >= W ? _mm_loadu_si128((const __m128i *)at) : _mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), at);
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
    vb bytes = {0};
    memcpy(&bytes, at, (size_t)(n < W ? n : W));
    return __builtin_convertvector(bytes, vf);
#endif
}

/* Ask for an element that is needed soon: the machine does not guess so many rows at once. */
INLINE void ask_ahead(const void *base, int64_t i, int kind) {
    __builtin_prefetch((const char *)base + i * (kind == FP32 ? 4 : kind == BF16 ? 2 : 1), 0, 2);
}

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

/* Lane t * (16/T) + r: x[t] · w[r], for T rows of x and 16/T rows of w; a row beyond the last is the last again.
 * `ahead`: whether the rows behind these come next. */
INLINE vf dot_tile(const float *x, int64_t ldx, const void *w, int64_t at, int64_t ldw, int64_t rows, int64_t cols,
                   int kind, const int T, const int ahead) {
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
            vf b = load_kind(w, row[r] + k, W, kind);
            if (ahead) ask_ahead(w, row[r] + SUMS * ldw + k, kind);
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) acc[t * R + r] += a[t] * b;
        }
    }
    if (k < cols) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vf b = load_kind(w, row[r] + k, cols - k, kind);
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
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) {
        if (rows >= R)
            memcpy(out + t * ldo, flat + t * R, R * 4);
        else
            memcpy(out + t * ldo, flat + t * R, (size_t)rows * 4);
    }
}

/* Rows of a matrix, in fours, that stay in the first cache while a chunk of tokens passes. */
INLINE int64_t near_rows(int64_t bytes) {
    int64_t rows = NEAR_BYTES / 4 / bytes * 4;
    return rows < 4 ? 4 : rows > SUMS ? SUMS : rows;
}

/* out[n][m0..m1) = x[n] · w[m] for n tokens; w [·][cols] begins at element `at`. */
INLINE void linear_dots(const float *x, int64_t ldx, int64_t n, const void *w, int64_t at, int64_t cols, int64_t m0,
                        int64_t m1, float *out, int64_t ldo, int kind) {
    if (n < 4) { /* one token at a time, sixteen rows: memory is the limit, and is read once for small matrices only */
        for (int64_t m = m0; m < m1; m += SUMS)
            for (int64_t t = 0; t < n; t++)
                put_dots(dot_tile(x + t * ldx, ldx, w, at + m * cols, cols, m1 - m, cols, kind, 1, 0), out + t * ldo + m,
                         ldo, m1 - m, 1);
        return;
    }
    int64_t rows = near_rows(cols * (kind == FP32 ? 4 : kind == BF16 ? 2 : 1));
    for (int64_t t0 = 0; t0 < n; t0 += CHUNK)
        for (int64_t first = m0; first < m1; first += rows)
            for (int64_t t = t0; t < n && t < t0 + CHUNK; t += 4) {
                int64_t from = t + 4 <= n ? t : n - 4; /* the last may be taken twice: the same sums, some wasted */
                for (int64_t m = first; m < m1 && m < first + rows; m += 4)
                    put_dots(dot_tile(x + from * ldx, ldx, w, at + m * cols, cols, m1 - m, cols, kind, 4, t == 0),
                             out + from * ldo + m, ldo, m1 - m, 4);
            }
}

/* Sets the scale of a token and returns its inverse. */
INLINE float fit(const float *x, int64_t cols, float *scale) {
    vf top = splat(0);
    for (int64_t k = 0; k < cols; k += W) top = vmax(top, vabs(load_n(x, k, cols - k, 0)));
    float largest = hmax(top);
    *scale = largest / LARGEST_ACTIVATION;
    return largest > 0 ? LARGEST_ACTIVATION / largest : 0;
}

#include "fp8.h"
#include "pairs.h"

/* --- AMX ------------------------------------------------------------------------------------------------------------ */

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define HAS_TILES

/* Whether the kernel lets this process use the tiles. */
static int tiles_allowed(void) {
    static int state; /* 0 not asked, 1 yes, 2 no; asking twice is harmless */
    if (!state) state = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0 ? 1 : 2;
    return state == 1;
}

static void tiles_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.columns[i] = LINE, config.rows[i] = TILE;
    _tile_loadconfig(&config);
}

static void tiles_end(void) { _tile_release(); }

#define ADD_PRODUCT(to, a, b)         \
    do {                              \
        if (int8)                     \
            _tile_dpbssd(to, a, b);   \
        else                          \
            _tile_dpbf16ps(to, a, b); \
    } while (0)

/* Activations as the second factor of tile products: blocks of 16 columns, [4 bytes of a column][16][4 bytes], with
 * zeros after a column's end. For bf16 matrices a column is a token in bf16. For int8 ones a token is scaled to 16-bit
 * integers and takes two columns, high and low bytes, both signed: integers add up exactly. */
typedef struct {
    char *data;
    float *scale; /* of each token; int8 only */
} Packed;

/* Elements k..k+31 of a token as 64 bytes. */
INLINE void pack_half(const float *x, int64_t left, float *line) {
    store(line, 0, load_n(x, 0, left, 0), 1);
    store(line, W, load_n(x, W, left > W ? left - W : 0, 0), 1);
}

/* Elements k..k+63 of a token as 64 high bytes and 64 low ones. */
INLINE void pack_bytes(const float *x, int64_t left, float inverse, char *high, char *low) {
    for (int64_t k = 0; k < LINE; k += W) {
        __m512i whole = _mm512_cvtps_epi32((__m512)(load_n(x, k, left > k ? left - k : 0, 0) * inverse));
        __m512i above = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
        _mm_storeu_si128((__m128i *)(high + k), _mm512_cvtepi32_epi8(above));
        _mm_storeu_si128((__m128i *)(low + k), _mm512_cvtepi32_epi8(whole));
    }
}

INLINE void pack(const float *x, int64_t ldx, int64_t n, int64_t cols, Packed to, int int8) {
    float lines[TILE * TILE] = {0}, inverse[TILE];
    int64_t tokens = int8 ? TILE / 2 : TILE, step = int8 ? LINE : LINE / 2; /* of a block; of a line */
    char *at = to.data;
    for (int64_t n0 = 0; n0 < n; n0 += tokens) {
        int64_t count = n - n0 < tokens ? n - n0 : tokens;
        if (count < tokens) memset(lines, 0, sizeof lines);
        for (int64_t t = 0; int8 && t < count; t++) inverse[t] = fit(x + (n0 + t) * ldx, cols, to.scale + n0 + t);
        for (int64_t k = 0; k < cols; k += step, at += TILE * LINE) {
            for (int64_t t = 0; t < count; t++) {
                const float *row = x + (n0 + t) * ldx + k;
                if (int8)
                    pack_bytes(row, cols - k, inverse[t], (char *)(lines + 2 * t * TILE),
                               (char *)(lines + (2 * t + 1) * TILE));
                else
                    pack_half(row, cols - k, lines + t * TILE);
            }
            transpose16(lines, TILE, (float *)at, TILE);
        }
    }
}

/* Sixteen rows of a matrix as tiles of 64 bytes a row; the last tile may lie elsewhere. Strides in bytes. */
typedef struct {
    const char *first, *last;
    int64_t stride, last_stride;
} Panel;

/* `count` rows of `bytes`, beginning at byte k of each, and zeros in all other places of to[16][ld]. */
static void copy_rows(const char *rows, int64_t count, int64_t bytes, int64_t k, char *to, int64_t ld) {
    memset(to, 0, (size_t)(TILE * ld));
    for (int64_t r = 0; r < count; r++) memcpy(to + r * ld, rows + r * bytes + k, (size_t)(bytes - k));
}

/* Rows of `bytes` where they lie if tiles can be read there, else what is missing copied to `room`. */
static Panel panel_of(const char *rows, int64_t count, int64_t bytes, char *room) {
    int64_t wide = round_up(bytes, LINE), last = wide - LINE;
    if (count == TILE && wide == bytes) return (Panel){rows, rows + last, bytes, bytes};
    if (count == TILE) {
        copy_rows(rows, count, bytes, last, room, LINE);
        return (Panel){rows, room, bytes, LINE};
    }
    copy_rows(rows, count, bytes, 0, room, wide);
    return (Panel){room, room + last, wide, wide};
}

/* Tiles 0..3 = upper and lower panel times the left and the right block; `ahead` is read into the cache meanwhile. */
INLINE void multiply(Panel upper, Panel lower, int lower_too, const char *left, const char *right, int64_t bytes,
                     const char *ahead, int int8) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < bytes; k += LINE) {
        int whole = k + LINE < bytes;
        if (ahead)
            for (int64_t i = 0; i < 2 * TILE; i++) __builtin_prefetch(ahead + 2 * TILE * k + i * LINE, 0, 2);
        _tile_loadd(4, whole ? upper.first + k : upper.last, whole ? upper.stride : upper.last_stride);
        _tile_loadd(6, left + k * TILE, LINE);
        ADD_PRODUCT(0, 4, 6);
        if (right) {
            _tile_loadd(7, right + k * TILE, LINE);
            ADD_PRODUCT(2, 4, 7);
        }
        if (lower_too) {
            _tile_loadd(5, whole ? lower.first + k : lower.last, whole ? lower.stride : lower.last_stride);
            ADD_PRODUCT(1, 5, 6);
            if (right) ADD_PRODUCT(3, 5, 7);
        }
    }
}

/* `tile` holds [row][column]; out gets [token][row] for `rows` rows. */
INLINE void put(const float *tile, float *out, int64_t ldo, int64_t rows, int64_t tokens) {
    float turned[TILE * TILE];
    transpose16(tile, TILE, turned, TILE);
    for (int64_t t = 0; t < tokens; t++) store_n(out, t * ldo, load(turned, t * TILE, 0), rows, 0);
}

/* As `put`, for columns of high and of low bytes. */
INLINE void put_bytes(const float *tile, const float *of_rows, const float *of_tokens, float *out, int64_t ldo,
                      int64_t rows, int64_t tokens) {
    float turned[TILE * TILE];
    transpose16(tile, TILE, turned, TILE);
    vf scale = load_n(of_rows, 0, rows, 0);
    for (int64_t t = 0; t < tokens; t++) {
        vf high = __builtin_convertvector((vi)load(turned, 2 * t * TILE, 0), vf);
        vf low = __builtin_convertvector((vi)load(turned, (2 * t + 1) * TILE, 0), vf);
        store_n(out, t * ldo, (high * 256 + low) * (scale * of_tokens[t]), rows, 0);
    }
}

/* As linear_dots, for bf16 and int8 matrices; `room` for two panels. */
INLINE void linear_tiles(Packed x, int64_t n, Weight w, int64_t at, int64_t cols, int64_t m0, int64_t m1, float *out,
                         int64_t ldo, char *room, int int8) {
    float sums[4][TILE * TILE] __attribute__((aligned(64)));
    int64_t bytes = int8 ? cols : 2 * cols, wide = round_up(bytes, LINE), block = TILE * wide;
    int64_t columns = int8 ? 2 * n : n, per_token = int8 ? 2 : 1;
    for (int64_t m = m0; m < m1; m += 2 * TILE) {
        const char *rows = (const char *)w.data + (int8 ? at : 2 * at) + m * bytes, *ahead = rows + 2 * TILE * bytes;
        if (m + 2 * TILE >= m1) ahead = NULL;
        int64_t high = m1 - m < TILE ? m1 - m : TILE, low = m1 - m - high < TILE ? m1 - m - high : TILE;
        Panel upper = panel_of(rows, high, bytes, room), lower = upper;
        if (low) lower = panel_of(rows + TILE * bytes, low, bytes, room + block);
        for (int64_t c0 = 0; c0 < columns; c0 += 2 * TILE) {
            const char *left = x.data + c0 / TILE * block;
            int more = columns - c0 > TILE;
            multiply(upper, lower, low > 0, left, more ? left + block : NULL, wide, c0 ? NULL : ahead, int8);
            _tile_stored(0, sums[0], LINE);
            _tile_stored(1, sums[1], LINE);
            _tile_stored(2, sums[2], LINE);
            _tile_stored(3, sums[3], LINE);
            for (int64_t part = 0; part < 2 + 2 * more; part++) {
                int64_t row = part % 2 * TILE, column = c0 + part / 2 * TILE, token = column / per_token;
                int64_t tokens = (columns - column < TILE ? columns - column : TILE) / per_token;
                float *to = out + token * ldo + m + row;
                if (int8)
                    put_bytes(sums[part], w.scale + at / cols + m + row, x.scale + token, to, ldo, row ? low : high, tokens);
                else
                    put(sums[part], to, ldo, row ? low : high, tokens);
            }
        }
    }
}

#else
INLINE int tiles_allowed(void) { return 0; }
static void tiles_begin(void) {}
static void tiles_end(void) {}
#endif

/* --- either --------------------------------------------------------------------------------------------------------- */

/* Floats of scratch that `linear` may need: packed activations with their scales, and two panels. */
INLINE int64_t linear_scratch(int64_t n, int64_t cols) {
    int64_t tokens = round_up(n, TILE);
    return (tokens + 2 * TILE) * round_up(2 * cols, 2 * LINE) / 4 + tokens;
}

/* out[n][m0..m1) = x[n] · w[m], w [·][cols] beginning at element `at`. Where tiles or pairs are used, x is rounded to bf16, or to
 * 16-bit integers for int8 matrices. Matrices of one kind may share one packing of x: `scratch` is filled when *ready
 * is 0, and *ready set. */
static void linear(const float *x, int64_t ldx, int64_t n, Weight w, int64_t at, int64_t cols, int64_t m0, int64_t m1,
                   float *out, int64_t ldo, float *scratch, int *ready) {
    if (m0 >= m1) return;
    if (w.kind == FP8) return linear_e4m3(x, ldx, n, w.data, w.scale, cols, m0, m1, out, ldo);
#ifdef HAS_TILES
    if (w.kind != FP32 && tiles_allowed()) {
        int64_t tokens = round_up(n, TILE);
        Packed packed = {(char *)(scratch + tokens), scratch};
        char *room = packed.data + tokens * round_up(2 * cols, 2 * LINE);
        int int8 = w.kind == INT8;
        if (!*ready && int8) pack(x, ldx, n, cols, packed, 1);
        if (!*ready && !int8) pack(x, ldx, n, cols, packed, 0);
        *ready = 1;
        if (int8)
            linear_tiles(packed, n, w, at, cols, m0, m1, out, ldo, room, 1);
        else
            linear_tiles(packed, n, w, at, cols, m0, m1, out, ldo, room, 0);
        return;
    }
#endif
#ifdef HAS_PAIRS
    if (w.kind == BF16 || w.kind == INT8) {
        Halves halves = {(uint16_t *)(scratch + round_up(n, W)), round_up(cols, PAIRED), scratch};
        if (!*ready) pack_halves(x, ldx, n, cols, halves, w.kind == INT8);
        *ready = 1;
        if (w.kind == BF16) linear_pairs(halves, n, w.data, at, cols, m0, m1, out, ldo, BF16);
        if (w.kind == INT8) linear_pairs(halves, n, w.data, at, cols, m0, m1, out, ldo, INT8);
        for (int64_t t = 0; t < n && w.kind == INT8; t++)
            for (int64_t m = m0; m < m1; m++) out[t * ldo + m] *= halves.scale[t] * w.scale[at / cols + m];
        return;
    }
#endif
    (void)scratch, (void)ready;
    if (w.kind == FP32) linear_dots(x, ldx, n, w.data, at, cols, m0, m1, out, ldo, FP32);
    if (w.kind == BF16) linear_dots(x, ldx, n, w.data, at, cols, m0, m1, out, ldo, BF16);
    if (w.kind != INT8) return;
    linear_dots(x, ldx, n, w.data, at, cols, m0, m1, out, ldo, INT8);
    for (int64_t t = 0; t < n; t++)
        for (int64_t m = m0; m < m1; m++) out[t * ldo + m] *= w.scale[at / cols + m];
}
