/* Causal softmax attention of the latent form: queries and the shared key are rotated here, and each
 * (sequence, head) pair is worked through in buffers that stay in the second-level cache.
 *
 * B sequences, T tokens, H heads, N no-position part, R rope part (even), V value head; K = N + R.
 *   q [B,T,H,K], rope part last;  kv [B,T,H,N+V];  k_rope [B,T,R];  cosine, sine [Bc,T,R/2] with Bc = 1 or B
 *   out [B,T,H,V];  softmax [B,H,T,2]: each row's maximum and the inverse of its sum
 *   segments [B,T] int32 or null: a token sees earlier tokens of its own segment only
 */
#include "flash.h"

typedef struct {
    const void *q, *kv, *k_rope;
    const float *cosine, *sine;
    const int32_t *segments;
    int64_t B, T, H, N, R, V, Bc;
    float scale;
    int half, threads;
} Shape;

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

/* --- forward -------------------------------------------------------------------------------------------------------- */

INLINE void forward_one(const Shape *s, int64_t b, int64_t h, const float *tables, const float *k_rope, float *scratch,
                        void *out, float *softmax, int half) {
    Head one = head_of(s->T, s->N + s->R, s->V);
    int64_t Tp = one.Tp, Kp = one.Kp, Vp = one.Vp;
    float *q = scratch, *k = q + Tp * Kp, *v = k + Tp * Kp, *kt = v + Tp * Vp, *rest = kt + Kp * one.ld;
    pack(s, b, h, tables, k_rope, Kp, Vp, Tp, q, k, v, half);
    transpose(k, Tp, Kp, kt, one.ld);
    if (s->segments) one.segments = pad_segments(s->segments + b * s->T, s->T, Tp, (int32_t *)rest);
    forward_head(one, q, kt, v, rest + Tp, out, (b * s->T * s->H + h) * s->V, s->H * s->V,
                 softmax + (b * s->H + h) * s->T * 2, half);
}

static int64_t floats_of_forward(const Shape *s) {
    Head one = head_of(s->T, s->N + s->R, s->V);
    return one.Tp * (2 * one.Kp + one.Vp + 1) + one.Kp * one.ld + forward_floats(one);
}

INLINE int forward(const Shape *s, float *tables, float *k_rope, void *out, float *softmax, int half) {
    make_tables(s, tables);
    rotate_keys(s, tables, k_rope, half);
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(s->threads) if (s->threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < s->B * s->H; i++) {
        float *scratch = scratch_of_thread(floats_of_forward(s));
        if (scratch)
            forward_one(s, i / s->H, i % s->H, tables, k_rope, scratch, out, softmax, half);
        else
            failed = 1;
    }
    return -failed;
}

/* --- backward ------------------------------------------------------------------------------------------------------- */

/* Where rows of a head's query gradients go. */
typedef struct {
    const Shape *s;
    const float *tables;
    void *grad_q;
    int64_t b, h;
    int half;
} Target;

INLINE void unpack_as(const Target *to, int64_t t, const float *gq, int half) {
    const Shape *s = to->s;
    int64_t row = to->b * s->T + t, at = (row * s->H + to->h) * (s->N + s->R);
    const float *table = to->tables + (s->Bc == 1 ? t : row) * 2 * s->R;
    copy_scaled(gq, 0, 0, s->N, s->scale, to->grad_q, at, half);
    rotate(gq, s->N, 0, table, s->R, -1, s->scale, to->grad_q, at + s->N, half);
}

static void unpack(const void *context, int64_t t, const float *gq) {
    const Target *to = context;
    if (to->half)
        unpack_as(to, t, gq, 1);
    else
        unpack_as(to, t, gq, 0);
}

INLINE void backward_one(const Shape *s, int64_t b, int64_t h, const float *tables, const float *k_rope,
                         float *scratch, const void *out, const float *softmax, const void *grad, void *grad_q,
                         void *grad_kv, float *grad_k_rope, int half) {
    int64_t T = s->T, N = s->N, R = s->R, V = s->V;
    Head one = head_of(T, N + R, V);
    int64_t Tp = one.Tp, Kp = one.Kp, Vp = one.Vp, ld = one.ld;
    float *q = scratch, *k = q + Tp * Kp, *v = k + Tp * Kp, *kt = v + Tp * Vp, *vt = kt + Kp * ld, *gk = vt + Vp * ld,
          *gv = gk + Tp * Kp, *padded = gv + Tp * Vp;
    pack(s, b, h, tables, k_rope, Kp, Vp, Tp, q, k, v, half);
    transpose(k, Tp, Kp, kt, ld);
    transpose(v, Tp, Vp, vt, ld);
    if (s->segments) one.segments = pad_segments(s->segments + b * T, T, Tp, (int32_t *)padded);
    memset(gk, 0, (size_t)(Tp * Kp + Tp * Vp) * 4);
    Backward work = {q, k, kt, vt, gk, gv, padded + Tp};
    Target target = {s, tables, grad_q, b, h, half};
    backward_head(one, work, out, grad, (b * T * s->H + h) * V, s->H * V, softmax + (b * s->H + h) * T * 2, half, unpack,
                  &target);
    for (int64_t t = 0; t < T; t++) {
        int64_t row = b * T + t, to = (row * s->H + h) * (N + V);
        const float *table = tables + (s->Bc == 1 ? t : row) * 2 * R;
        copy_scaled(gk, t * Kp, 0, N, 1, grad_kv, to, half);
        copy_scaled(gv, t * Vp, 0, V, 1, grad_kv, to + N, half);
        rotate(gk, t * Kp + N, 0, table, R, -1, 1, grad_k_rope, ((b * s->H + h) * T + t) * R, 0);
    }
}

static int64_t floats_of_backward(const Shape *s) {
    Head one = head_of(s->T, s->N + s->R, s->V);
    return one.Tp * (3 * one.Kp + 2 * one.Vp + 1) + (one.Kp + one.Vp) * one.ld + backward_floats(one);
}

INLINE int backward(const Shape *s, float *tables, float *k_rope, const void *out, const float *softmax,
                    const void *grad, void *grad_q, void *grad_kv, void *grad_k_rope, float *of_heads, int half) {
    make_tables(s, tables);
    rotate_keys(s, tables, k_rope, half);
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(s->threads) if (s->threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < s->B * s->H; i++) {
        float *scratch = scratch_of_thread(floats_of_backward(s));
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
