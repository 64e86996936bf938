/* Causal softmax attention of one head, forward and backward, in buffers that stay in the second-level cache. What packs
 * a head's queries, keys and values, and unpacks their gradients, is its user's.
 *
 * T tokens, K key, V value; T', K', V' those rounded up to vectors. Buffers are fp32, and zero beyond T, K and V.
 */
#pragma once
#include "vec.h"

enum { ROWS = 8, BLOCK = 32 }; /* query rows of one register tile, and of one pass of the backward */

/* The sizes of a head. `ld` is the length of rows of T', off the power of two, whose rows would share one cache set;
 * `segments` [T'] int32 or null: a token sees earlier tokens of its own segment only. */
typedef struct {
    int64_t T, K, V, Tp, Kp, Vp, ld;
    const int32_t *segments;
} Head;

static Head head_of(int64_t T, int64_t K, int64_t V) {
    int64_t Tp = round_up(T, W);
    return (Head){T, K, V, Tp, round_up(K, W), round_up(V, W), Tp + W, NULL};
}

/* --- products ------------------------------------------------------------------------------------------------------- */

/* c[m][n] (+)= sum_k a[m*am + k*ak] * b[k*ldb + n] for 8 rows and `vectors` * 16 columns, held in registers. */
INLINE void tile(const float *a, int64_t am, int64_t ak, const float *b, int64_t ldb, float *c, int64_t ldc,
                 int64_t depth, int add, const int vectors) {
    vf acc[ROWS][2];
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) acc[m][v] = add ? load(c, m * ldc + v * W, 0) : splat(0);
    for (int64_t k = 0; k < depth; k++) {
        vf row[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) row[v] = load(b, k * ldb + v * W, 0);
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) acc[m][v] += a[m * am + k * ak] * row[v];
    }
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) store(c, m * ldc + v * W, acc[m][v], 0);
}

/* Eight rows of a product, `columns` a multiple of 16. */
static void product(const float *a, int64_t am, int64_t ak, const float *b, int64_t ldb, float *c, int64_t ldc,
                    int64_t depth, int64_t columns, int add) {
    int64_t n = 0;
    for (; n + 2 * W <= columns; n += 2 * W) tile(a, am, ak, b + n, ldb, c + n, ldc, depth, add, 2);
    if (n < columns) tile(a, am, ak, b + n, ldb, c + n, ldc, depth, add, 1);
}

static void transpose(const float *from, int64_t rows, int64_t columns, float *to, int64_t ld_to) {
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t j = 0; j < columns; j += W) transpose16(from + i * columns + j, columns, to + j * ld_to + i, ld_to);
}

/* y = x * scale; either may be bf16. */
INLINE void copy_scaled(const void *x, int64_t i, int half, int64_t count, float scale, void *y, int64_t o,
                        int half_out) {
    for (int64_t j = 0; j < count; j += W)
        store_n(y, o + j, load_n(x, i + j, count - j, half) * scale, count - j, half_out);
}

/* --- masks ---------------------------------------------------------------------------------------------------------- */

/* What rows t0..t0+7 may see starts here: a multiple of 16 at or before their segments' first token. */
INLINE int64_t first_column(const int32_t *segments, int64_t t0, int64_t T) {
    if (!segments) return 0;
    int64_t first = t0;
    for (int64_t t = t0; t < t0 + ROWS && t < T; t++) {
        int64_t s = 0;
        while (segments[s] != segments[t]) s++;
        if (s < first) first = s;
    }
    return first / W * W;
}

/* Lanes of columns c..c+15 that row t sees. */
INLINE vi visible(const int32_t *segments, int64_t t, int64_t c) {
    vi lanes = (LANES + (int32_t)c) <= (int32_t)t;
    if (segments) {
        vi other;
        memcpy(&other, segments + c, sizeof other);
        lanes &= other == segments[t];
    }
    return lanes;
}

/* Segments padded to T' with a number that no row looks for, since columns beyond T follow every row. */
static const int32_t *pad_segments(const int32_t *segments, int64_t T, int64_t Tp, int32_t *to) {
    memset(to, 0, (size_t)Tp * 4);
    return memcpy(to, segments, (size_t)T * 4);
}

/* --- one head ---------------------------------------------------------------------------------------------------------- */

static int64_t forward_floats(Head h) { return ROWS * (h.ld + h.Vp); }

/* Queries (scaled) [T'][K'], keys [K'][ld] and values [T'][V'] -> row t of the result at element `at` + t * `ldo` of out,
 * and each row's maximum and the inverse of its sum in softmax_row [T][2]. */
INLINE void forward_head(Head h, const float *q, const float *kt, const float *v, float *scratch, void *out, int64_t at,
                         int64_t ldo, float *softmax_row, int half) {
    int64_t T = h.T, Kp = h.Kp, Vp = h.Vp, ld = h.ld;
    float *p = scratch, *o = p + ROWS * ld;
    for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
        int64_t lo = first_column(h.segments, t0, T), hi = round_up(t0 + ROWS, W), rows = T - t0 < ROWS ? T - t0 : ROWS;
        product(q + t0 * Kp, Kp, 1, kt + lo, ld, p + lo, ld, Kp, hi - lo, 0);
        float inverse[ROWS];
        for (int64_t r = 0; r < rows; r++) {
            int64_t t = t0 + r;
            float *row = p + r * ld;
            vf top = splat(-INFINITY);
            for (int64_t c = lo; c < hi; c += W) {
                vf x = load(row, c, 0);
                if (h.segments || c + W > t0) {
                    x = choose(visible(h.segments, t, c), x, splat(-INFINITY));
                    store(row, c, x, 0);
                }
                top = vmax(top, x);
            }
            float max = hmax(top);
            vf sum = splat(0);
            for (int64_t c = lo; c < hi; c += W) {
                vf e = vexp(load(row, c, 0) - max);
                sum += e;
                store(row, c, e, 0);
            }
            inverse[r] = 1.0f / hsum(sum);
            softmax_row[2 * t] = max;
            softmax_row[2 * t + 1] = inverse[r];
        }
        for (int64_t r = rows; r < ROWS; r++) memset(p + r * ld + lo, 0, (size_t)(hi - lo) * 4);
        product(p + lo, ld, 1, v + lo * Vp, Vp, o, Vp, hi - lo, Vp, 0);
        for (int64_t r = 0; r < rows; r++) copy_scaled(o, r * Vp, 0, h.V, inverse[r], out, at + (t0 + r) * ldo, half);
    }
}

/* A head's share of what the backward needs: queries (scaled) and keys [T'][K'], keys and values turned
 * [·][ld], and the gradients of keys and values [T'][·], which are added to. */
typedef struct {
    const float *q, *k, *kt, *vt;
    float *grad_k, *grad_v, *scratch;
} Backward;

static int64_t backward_floats(Head h) { return h.Tp * h.Vp + ROWS * h.Kp + 2 * BLOCK * h.ld + h.Tp; }

/* out, grad: the result and its gradient, row t at element `at` + t * `ldo`. `unpack` takes each row of the queries'
 * gradient. */
INLINE void backward_head(Head h, Backward b, const void *out, const void *grad, int64_t at, int64_t ldo,
                          const float *softmax_row, int half, void unpack(const void *, int64_t, const float *),
                          const void *context) {
    int64_t T = h.T, Tp = h.Tp, Kp = h.Kp, Vp = h.Vp, ld = h.ld;
    const float *q = b.q, *k = b.k, *kt = b.kt, *vt = b.vt;
    float *go = b.scratch, *gq = go + Tp * Vp, *p = gq + ROWS * Kp, *ds = p + BLOCK * ld, *delta = ds + BLOCK * ld;
    float *gk = b.grad_k, *gv = b.grad_v;
    memset(go, 0, (size_t)(Tp * Vp) * 4);
    for (int64_t t = 0; t < T; t++) {
        int64_t row = at + t * ldo;
        vf sum = splat(0);
        for (int64_t j = 0; j < h.V; j += W) {
            vf g = load_n(grad, row + j, h.V - j, half);
            sum += g * load_n(out, row + j, h.V - j, half);
            store(go, t * Vp + j, g, 0);
        }
        delta[t] = hsum(sum);
    }
    for (int64_t block = 0; block < T; block += BLOCK) {
        int64_t end = block + BLOCK < Tp ? block + BLOCK : Tp, left = end;
        for (int64_t t0 = block; t0 < end && t0 < T; t0 += ROWS) {
            int64_t lo = first_column(h.segments, t0, T);
            if (lo < left) left = lo;
        }
        for (int64_t t0 = block; t0 < end; t0 += ROWS) {
            int64_t lo = first_column(h.segments, t0, T), hi = round_up(t0 + ROWS, W);
            if (t0 >= T) lo = hi;
            float *p8 = p + (t0 - block) * ld, *ds8 = ds + (t0 - block) * ld;
            product(q + t0 * Kp, Kp, 1, kt + lo, ld, p8 + lo, ld, Kp, hi - lo, 0);
            product(go + t0 * Vp, Vp, 1, vt + lo, ld, ds8 + lo, ld, Vp, hi - lo, 0);
            for (int64_t r = 0; r < ROWS; r++) {
                int64_t t = t0 + r;
                float *pr = p8 + r * ld, *dr = ds8 + r * ld;
                for (int64_t c = left; c < lo; c += W) store(pr, c, splat(0), 0), store(dr, c, splat(0), 0);
                for (int64_t c = hi; c < end; c += W) store(pr, c, splat(0), 0), store(dr, c, splat(0), 0);
                if (t >= T) {
                    for (int64_t c = lo; c < hi; c += W) store(pr, c, splat(0), 0), store(dr, c, splat(0), 0);
                    continue;
                }
                float max = softmax_row[2 * t], inverse = softmax_row[2 * t + 1], d = delta[t];
                for (int64_t c = lo; c < hi; c += W) {
                    vf w = vexp(load(pr, c, 0) - max) * inverse;
                    vf g = w * (load(dr, c, 0) - d);
                    if (h.segments || c + W > t0) {
                        vi seen = visible(h.segments, t, c);
                        w = choose(seen, w, splat(0));
                        g = choose(seen, g, splat(0));
                    }
                    store(pr, c, w, 0);
                    store(dr, c, g, 0);
                }
            }
            product(ds8 + lo, ld, 1, k + lo * Kp, Kp, gq, Kp, hi - lo, Kp, 0);
            for (int64_t r = 0; r < ROWS && t0 + r < T; r++) unpack(context, t0 + r, gq + r * Kp);
        }
        for (int64_t c = left; c < end; c += ROWS) {
            int64_t skip = c > block ? c - block : 0; /* rows before column c do not see it */
            product(ds + skip * ld + c, 1, ld, q + (block + skip) * Kp, Kp, gk + c * Kp, Kp, end - block - skip, Kp, 1);
            product(p + skip * ld + c, 1, ld, go + (block + skip) * Vp, Vp, gv + c * Vp, Vp, end - block - skip, Vp, 1);
        }
    }
}
