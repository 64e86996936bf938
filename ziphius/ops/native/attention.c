/* Causal softmax attention of the latent form: queries and the shared key are rotated here, and each
 * (sequence, head) pair is worked through in buffers that stay in the second-level cache.
 *
 * B sequences, T tokens, H heads, N no-position part, R rope part (even), V value head; K = N + R.
 *   q [B,T,H,K], rope part last;  kv [B,T,H,N+V];  k_rope [B,T,R];  cosine, sine [Bc,T,R/2] with Bc = 1 or B
 *   out [B,T,H,V];  softmax [B,H,T,2]: each row's maximum and the inverse of its sum
 *   segments [B,T] int32 or null: a token sees earlier tokens of its own segment only
 */
#include "vec.h"

typedef struct {
    const void *q, *kv, *k_rope;
    const float *cosine, *sine;
    const int32_t *segments;
    int64_t B, T, H, N, R, V, Bc;
    float scale;
    int half, threads;
} Shape;

enum { ROWS = 8, BLOCK = 32 }; /* query rows of one register tile, and of one pass of the backward */

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

/* --- packing -------------------------------------------------------------------------------------------------------- */

/* Rotation as two vector passes: y = x * twice(cos) + swap(x) * signed(sin), the pairs staying where they are. */
static void make_tables(const Shape *s, float *tables) {
    int64_t half = s->R / 2, count = s->Bc * s->T;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < half; j++) {
            float c = s->cosine[i * half + j], d = s->sine[i * half + j];
            float *row = tables + i * 2 * s->R;
            row[2 * j] = row[2 * j + 1] = c;
            row[s->R + 2 * j] = -d;
            row[s->R + 2 * j + 1] = d;
        }
}

INLINE vf swap_pairs(vf x) { return SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14); }

/* sign +1 rotates, -1 rotates back; the result is scaled and may be stored as bf16. */
INLINE void rotate(const void *x, int64_t i, int half, const float *table, int64_t R, float sign, float scale,
                   void *y, int64_t o, int half_out) {
    for (int64_t j = 0; j < R; j += W) {
        int64_t n = R - j;
        vf v = load_n(x, i + j, n, half);
        vf c = load_n(table, j, n, 0) * scale, d = load_n(table, R + j, n, 0) * (sign * scale);
        store_n(y, o + j, v * c + swap_pairs(v) * d, n, half_out);
    }
}

INLINE void copy_scaled(const void *x, int64_t i, int half, int64_t count, float scale, void *y, int64_t o,
                        int half_out) {
    for (int64_t j = 0; j < count; j += W)
        store_n(y, o + j, load_n(x, i + j, count - j, half) * scale, count - j, half_out);
}

/* Queries (scaled) and keys [T'][K'], values [T'][V']: fp32, rotated, zero beyond T, K and V. */
INLINE void pack(const Shape *s, int64_t b, int64_t h, const float *tables, const float *k_rope, int64_t Kp,
                 int64_t Vp, int64_t Tp, float *q, float *k, float *v, int half) {
    int64_t K = s->N + s->R, X = s->N + s->V;
    for (int64_t t = 0; t < Tp; t++) {
        if (t >= s->T || Kp != K) memset(q + t * Kp, 0, Kp * 4), memset(k + t * Kp, 0, Kp * 4);
        if (t >= s->T || Vp != s->V) memset(v + t * Vp, 0, Vp * 4);
        if (t >= s->T) continue;
        int64_t row = b * s->T + t, of_q = (row * s->H + h) * K, of_kv = (row * s->H + h) * X;
        const float *table = tables + (s->Bc == 1 ? t : row) * 2 * s->R;
        copy_scaled(s->q, of_q, half, s->N, s->scale, q, t * Kp, 0);
        rotate(s->q, of_q + s->N, half, table, s->R, 1, s->scale, q, t * Kp + s->N, 0);
        copy_scaled(s->kv, of_kv, half, s->N, 1, k, t * Kp, 0);
        copy_scaled(k_rope, row * s->R, 0, s->R, 1, k, t * Kp + s->N, 0);
        copy_scaled(s->kv, of_kv + s->N, half, s->V, 1, v, t * Vp, 0);
    }
}

/* The rotated shared keys, fp32 [B,T,R]. */
INLINE void rotate_keys(const Shape *s, const float *tables, float *k_rope, int half) {
    for (int64_t row = 0; row < s->B * s->T; row++)
        rotate(s->k_rope, row * s->R, half, tables + (s->Bc == 1 ? row % s->T : row) * 2 * s->R, s->R, 1, 1, k_rope,
               row * s->R, 0);
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
static void pad_segments(const Shape *s, int64_t b, int64_t Tp, int32_t *to) {
    memset(to, 0, (size_t)Tp * 4);
    memcpy(to, s->segments + b * s->T, (size_t)s->T * 4);
}

/* --- forward -------------------------------------------------------------------------------------------------------- */

INLINE void forward_one(const Shape *s, int64_t b, int64_t h, const float *tables, const float *k_rope, float *scratch,
                        void *out, float *softmax, int half) {
    int64_t T = s->T, V = s->V, Tp = round_up(T, W), Kp = round_up(s->N + s->R, W), Vp = round_up(V, W);
    int64_t ld = Tp + W; /* off the power of two, whose rows would share one cache set */
    float *q = scratch, *k = q + Tp * Kp, *v = k + Tp * Kp, *kt = v + Tp * Vp, *p = kt + Kp * ld, *o = p + ROWS * ld;
    int32_t *padded = (int32_t *)(o + ROWS * Vp), *segments = s->segments ? padded : NULL;
    pack(s, b, h, tables, k_rope, Kp, Vp, Tp, q, k, v, half);
    transpose(k, Tp, Kp, kt, ld);
    if (segments) pad_segments(s, b, Tp, segments);
    float *softmax_row = softmax + (b * s->H + h) * T * 2;
    for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
        int64_t lo = first_column(segments, t0, T), hi = round_up(t0 + ROWS, W), rows = T - t0 < ROWS ? T - t0 : ROWS;
        product(q + t0 * Kp, Kp, 1, kt + lo, ld, p + lo, ld, Kp, hi - lo, 0);
        float inverse[ROWS];
        for (int64_t r = 0; r < rows; r++) {
            int64_t t = t0 + r;
            float *row = p + r * ld;
            vf top = splat(-INFINITY);
            for (int64_t c = lo; c < hi; c += W) {
                vf x = load(row, c, 0);
                if (segments || c + W > t0) {
                    x = choose(visible(segments, t, c), x, splat(-INFINITY));
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
        for (int64_t r = 0; r < rows; r++)
            copy_scaled(o, r * Vp, 0, V, inverse[r], out, ((b * T + t0 + r) * s->H + h) * V, half);
    }
}

static int64_t forward_floats(const Shape *s) {
    int64_t Tp = round_up(s->T, W), Kp = round_up(s->N + s->R, W), Vp = round_up(s->V, W), ld = Tp + W;
    return 2 * Tp * Kp + Tp * Vp + Kp * ld + ROWS * ld + ROWS * Vp + Tp;
}

INLINE int forward(const Shape *s, float *tables, float *k_rope, void *out, float *softmax, int half) {
    make_tables(s, tables);
    rotate_keys(s, tables, k_rope, half);
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(s->threads) if (s->threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < s->B * s->H; i++) {
        float *scratch = scratch_of_thread(forward_floats(s));
        if (scratch)
            forward_one(s, i / s->H, i % s->H, tables, k_rope, scratch, out, softmax, half);
        else
            failed = 1;
    }
    return -failed;
}

/* --- backward ------------------------------------------------------------------------------------------------------- */

INLINE void backward_one(const Shape *s, int64_t b, int64_t h, const float *tables, const float *k_rope,
                         float *scratch, const void *out, const float *softmax, const void *grad, void *grad_q,
                         void *grad_kv, float *grad_k_rope, int half) {
    int64_t T = s->T, N = s->N, R = s->R, V = s->V, K = N + R;
    int64_t Tp = round_up(T, W), Kp = round_up(K, W), Vp = round_up(V, W), ld = Tp + W;
    float *q = scratch, *k = q + Tp * Kp, *v = k + Tp * Kp, *go = v + Tp * Vp, *kt = go + Tp * Vp, *vt = kt + Kp * ld,
          *gq = vt + Vp * ld, *gk = gq + ROWS * Kp, *gv = gk + Tp * Kp, *p = gv + Tp * Vp, *ds = p + BLOCK * ld,
          *delta = ds + BLOCK * ld;
    int32_t *padded = (int32_t *)(delta + Tp), *segments = s->segments ? padded : NULL;
    pack(s, b, h, tables, k_rope, Kp, Vp, Tp, q, k, v, half);
    transpose(k, Tp, Kp, kt, ld);
    transpose(v, Tp, Vp, vt, ld);
    if (segments) pad_segments(s, b, Tp, segments);
    memset(gk, 0, (size_t)(Tp * Kp + Tp * Vp) * 4);
    memset(go, 0, (size_t)(Tp * Vp) * 4);
    for (int64_t t = 0; t < T; t++) {
        int64_t row = ((b * T + t) * s->H + h) * V;
        vf sum = splat(0);
        for (int64_t j = 0; j < V; j += W) {
            vf g = load_n(grad, row + j, V - j, half);
            sum += g * load_n(out, row + j, V - j, half);
            store(go, t * Vp + j, g, 0);
        }
        delta[t] = hsum(sum);
    }
    const float *softmax_row = softmax + (b * s->H + h) * T * 2;
    for (int64_t block = 0; block < T; block += BLOCK) {
        int64_t end = block + BLOCK < Tp ? block + BLOCK : Tp, left = end;
        for (int64_t t0 = block; t0 < end && t0 < T; t0 += ROWS) {
            int64_t lo = first_column(segments, t0, T);
            if (lo < left) left = lo;
        }
        for (int64_t t0 = block; t0 < end; t0 += ROWS) {
            int64_t lo = first_column(segments, t0, T), hi = round_up(t0 + ROWS, W);
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
                    if (segments || c + W > t0) {
                        vi seen = visible(segments, t, c);
                        w = choose(seen, w, splat(0));
                        g = choose(seen, g, splat(0));
                    }
                    store(pr, c, w, 0);
                    store(dr, c, g, 0);
                }
            }
            product(ds8 + lo, ld, 1, k + lo * Kp, Kp, gq, Kp, hi - lo, Kp, 0);
            for (int64_t r = 0; r < ROWS && t0 + r < T; r++) {
                int64_t row = b * T + t0 + r, to = (row * s->H + h) * K;
                const float *table = tables + (s->Bc == 1 ? t0 + r : row) * 2 * R;
                copy_scaled(gq, r * Kp, 0, N, s->scale, grad_q, to, half);
                rotate(gq, r * Kp + N, 0, table, R, -1, s->scale, grad_q, to + N, half);
            }
        }
        for (int64_t c = left; c < end; c += ROWS) {
            int64_t skip = c > block ? c - block : 0; /* rows before column c do not see it */
            product(ds + skip * ld + c, 1, ld, q + (block + skip) * Kp, Kp, gk + c * Kp, Kp, end - block - skip, Kp, 1);
            product(p + skip * ld + c, 1, ld, go + (block + skip) * Vp, Vp, gv + c * Vp, Vp, end - block - skip, Vp, 1);
        }
    }
    for (int64_t t = 0; t < T; t++) {
        int64_t row = b * T + t, to = (row * s->H + h) * (N + V);
        const float *table = tables + (s->Bc == 1 ? t : row) * 2 * R;
        copy_scaled(gk, t * Kp, 0, N, 1, grad_kv, to, half);
        copy_scaled(gv, t * Vp, 0, V, 1, grad_kv, to + N, half);
        rotate(gk, t * Kp + N, 0, table, R, -1, 1, grad_k_rope, ((b * s->H + h) * T + t) * R, 0);
    }
}

static int64_t backward_floats(const Shape *s) {
    int64_t Tp = round_up(s->T, W), Kp = round_up(s->N + s->R, W), Vp = round_up(s->V, W), ld = Tp + W;
    return 3 * Tp * Kp + 3 * Tp * Vp + (Kp + Vp) * ld + ROWS * Kp + 2 * BLOCK * ld + 2 * Tp;
}

INLINE int backward(const Shape *s, float *tables, float *k_rope, const void *out, const float *softmax,
                    const void *grad, void *grad_q, void *grad_kv, void *grad_k_rope, float *of_heads, int half) {
    make_tables(s, tables);
    rotate_keys(s, tables, k_rope, half);
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(s->threads) if (s->threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < s->B * s->H; i++) {
        float *scratch = scratch_of_thread(backward_floats(s));
        if (scratch)
            backward_one(s, i / s->H, i % s->H, tables, k_rope, scratch, out, softmax, grad, grad_q, grad_kv, of_heads,
                         half);
        else
            failed = 1;
    }
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t i = 0; i < s->T * s->R; i += W) {
            int64_t n = s->T * s->R - i;
            vf sum = splat(0);
            for (int64_t h = 0; h < s->H; h++) sum += load_n(of_heads, (b * s->H + h) * s->T * s->R + i, n, 0);
            store_n(grad_k_rope, b * s->T * s->R + i, sum, n, half);
        }
    return -failed;
}

/* --- what Python calls ------------------------------------------------------------------------------------------------ */

/* `workspace` holds Bc*T*2R + B*T*R floats, and B*H*T*R more for the backward. Returns -1 when memory ran out. */
int64_t attention_forward(const void *q, const void *kv, const void *k_rope, const float *cosine, const float *sine,
                      const int32_t *segments, float *workspace, void *out, float *softmax, int64_t B, int64_t T,
                      int64_t H, int64_t N, int64_t R, int64_t V, int64_t Bc, float scale, int half, int threads) {
    Shape s = {q, kv, k_rope, cosine, sine, segments, B, T, H, N, R, V, Bc, scale, half, threads};
    float *rotated = workspace + Bc * T * 2 * R;
    return half ? forward(&s, workspace, rotated, out, softmax, 1) : forward(&s, workspace, rotated, out, softmax, 0);
}

int64_t attention_backward(const void *q, const void *kv, const void *k_rope, const float *cosine, const float *sine,
                       const int32_t *segments, float *workspace, const void *out, const float *softmax,
                       const void *grad, void *grad_q, void *grad_kv, void *grad_k_rope, int64_t B, int64_t T,
                       int64_t H, int64_t N, int64_t R, int64_t V, int64_t Bc, float scale, int half, int threads) {
    Shape s = {q, kv, k_rope, cosine, sine, segments, B, T, H, N, R, V, Bc, scale, half, threads};
    float *rotated = workspace + Bc * T * 2 * R, *of_heads = rotated + B * T * R;
    return half ? backward(&s, workspace, rotated, out, softmax, grad, grad_q, grad_kv, grad_k_rope, of_heads, 1)
                : backward(&s, workspace, rotated, out, softmax, grad, grad_q, grad_kv, grad_k_rope, of_heads, 0);
}
