/* Causal softmax attention in which H heads of queries share G keys and values (Ainslie et al. 2023, arXiv 2305.13245).
 * Each (sequence, key) pair is worked through at once, so that gradients of what heads share add up in one order.
 *
 * B sequences, T tokens, K head dim (even), rotated first half against second
 *   q [B,T,H,K];  k, v [B,T,G,K];  cosine, sine [Bc,T,K/2] with Bc = 1 or B
 *   out [B,T,H,K];  softmax [B,H,T,2]: each row's maximum and the inverse of its sum
 *   segments [B,T] int32 or null: a token sees earlier tokens of its own segment only
 */
#include "flash.h"

typedef struct {
    const void *q, *k, *v;
    const float *cosine, *sine;
    const int32_t *segments;
    int64_t B, T, H, G, K, Bc;
    float scale;
    int half, threads;
} Shape;

/* sign +1 rotates, -1 rotates back; either side may be bf16. */
INLINE void rotate(const Shape *s, int64_t b, int64_t t, const void *x, int64_t i, int half, float sign, float scale,
                   void *y, int64_t o, int half_out) {
    int64_t pairs = s->K / 2, angle = (s->Bc == 1 ? t : b * s->T + t) * pairs;
    for (int64_t k = 0; k < pairs; k += W) {
        int64_t n = pairs - k;
        vf c = load_n(s->cosine, angle + k, n, 0) * scale, d = load_n(s->sine, angle + k, n, 0) * (scale * sign);
        vf first = load_n(x, i + k, n, half), second = load_n(x, i + pairs + k, n, half);
        store_n(y, o + k, first * c - second * d, n, half_out);
        store_n(y, o + pairs + k, second * c + first * d, n, half_out);
    }
}

/* Heads of one kind [T'][K']: rotated and scaled, or as they are. Head h of `heads` in x [B,T,heads,K]. */
INLINE void pack(const Shape *s, const void *x, int64_t b, int64_t h, int64_t heads, int turn, float scale, Head one,
                 float *to, int half) {
    if (one.Kp != one.K)
        memset(to, 0, (size_t)(one.Tp * one.Kp) * 4);
    else
        memset(to + one.T * one.Kp, 0, (size_t)((one.Tp - one.T) * one.Kp) * 4);
    for (int64_t t = 0; t < s->T; t++) {
        int64_t from = ((b * s->T + t) * heads + h) * s->K;
        if (turn)
            rotate(s, b, t, x, from, half, 1, scale, to, t * one.Kp, 0);
        else
            copy_scaled(x, from, half, s->K, scale, to, t * one.Kp, 0);
    }
}

static Head sized(const Shape *s, int64_t b, float *padded) {
    Head one = head_of(s->T, s->K, s->K);
    if (padded && s->segments) one.segments = pad_segments(s->segments + b * s->T, s->T, one.Tp, (int32_t *)padded);
    return one;
}

/* --- forward -------------------------------------------------------------------------------------------------------- */

static int64_t floats_of_forward(const Shape *s) {
    Head one = sized(s, 0, NULL);
    return one.Tp + one.Tp * 3 * one.Kp + one.Kp * one.ld + forward_floats(one);
}

INLINE void forward_group(const Shape *s, int64_t b, int64_t g, float *scratch, void *out, float *softmax, int half) {
    Head one = sized(s, b, scratch);
    int64_t size = one.Tp * one.Kp, per = s->H / s->G;
    float *q = scratch + one.Tp, *k = q + size, *v = k + size, *kt = v + size, *rest = kt + one.Kp * one.ld;
    pack(s, s->k, b, g, s->G, 1, 1, one, k, half);
    pack(s, s->v, b, g, s->G, 0, 1, one, v, half);
    transpose(k, one.Tp, one.Kp, kt, one.ld);
    for (int64_t h = g * per; h < (g + 1) * per; h++) {
        pack(s, s->q, b, h, s->H, 1, s->scale, one, q, half);
        forward_head(one, q, kt, v, rest, out, (b * s->T * s->H + h) * s->K, s->H * s->K,
                     softmax + (b * s->H + h) * s->T * 2, half);
    }
}

/* --- backward ------------------------------------------------------------------------------------------------------- */

/* Where rows of a head's query gradients go. */
typedef struct {
    const Shape *s;
    void *grad_q;
    int64_t b, h;
} Target;

static void unpack(const void *context, int64_t t, const float *grad) {
    const Target *to = context;
    const Shape *s = to->s;
    int64_t at = ((to->b * s->T + t) * s->H + to->h) * s->K;
    if (s->half)
        rotate(s, to->b, t, grad, 0, 0, -1, s->scale, to->grad_q, at, 1);
    else
        rotate(s, to->b, t, grad, 0, 0, -1, s->scale, to->grad_q, at, 0);
}

static int64_t floats_of_backward(const Shape *s) {
    Head one = sized(s, 0, NULL);
    return one.Tp + one.Tp * 4 * one.Kp + 2 * one.Kp * one.ld + backward_floats(one);
}

INLINE void backward_group(const Shape *s, int64_t b, int64_t g, float *scratch, const void *out, const float *softmax,
                           const void *grad, void *grad_q, void *grad_k, void *grad_v, int half) {
    Head one = sized(s, b, scratch);
    int64_t size = one.Tp * one.Kp, turned = one.Kp * one.ld, per = s->H / s->G;
    float *q = scratch + one.Tp, *k = q + size, *gk = k + size, *gv = gk + size, *kt = gv + size, *vt = kt + turned;
    pack(s, s->v, b, g, s->G, 0, 1, one, k, half);
    transpose(k, one.Tp, one.Kp, vt, one.ld);
    pack(s, s->k, b, g, s->G, 1, 1, one, k, half);
    transpose(k, one.Tp, one.Kp, kt, one.ld);
    memset(gk, 0, (size_t)(2 * size) * 4);
    Backward work = {q, k, kt, vt, gk, gv, vt + turned};
    for (int64_t h = g * per; h < (g + 1) * per; h++) {
        Target target = {s, grad_q, b, h};
        pack(s, s->q, b, h, s->H, 1, s->scale, one, q, half);
        backward_head(one, work, out, grad, (b * s->T * s->H + h) * s->K, s->H * s->K,
                      softmax + (b * s->H + h) * s->T * 2, half, unpack, &target);
    }
    for (int64_t t = 0; t < s->T; t++) {
        int64_t to = ((b * s->T + t) * s->G + g) * s->K;
        rotate(s, b, t, gk, t * one.Kp, 0, -1, 1, grad_k, to, half);
        copy_scaled(gv, t * one.Kp, 0, s->K, 1, grad_v, to, half);
    }
}

/* --- what Python calls ---------------------------------------------------------------------------------------------- */

/* Both return -1 when memory ran out. */
int64_t gqa_forward(const void *q, const void *k, const void *v, const float *cosine, const float *sine,
                    const int32_t *segments, void *out, float *softmax, int64_t B, int64_t T, int64_t H, int64_t G,
                    int64_t K, int64_t Bc, float scale, int half, int threads) {
    Shape s = {q, k, v, cosine, sine, segments, B, T, H, G, K, Bc, scale, half, threads};
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < B * G; i++) {
        float *scratch = scratch_of_thread(floats_of_forward(&s));
        if (!scratch)
            failed = 1;
        else if (half)
            forward_group(&s, i / G, i % G, scratch, out, softmax, 1);
        else
            forward_group(&s, i / G, i % G, scratch, out, softmax, 0);
    }
    return -failed;
}

int64_t gqa_backward(const void *q, const void *k, const void *v, const float *cosine, const float *sine,
                     const int32_t *segments, const void *out, const float *softmax, const void *grad, void *grad_q,
                     void *grad_k, void *grad_v, int64_t B, int64_t T, int64_t H, int64_t G, int64_t K, int64_t Bc,
                     float scale, int half, int threads) {
    Shape s = {q, k, v, cosine, sine, segments, B, T, H, G, K, Bc, scale, half, threads};
    int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < B * G; i++) {
        float *scratch = scratch_of_thread(floats_of_backward(&s));
        if (!scratch)
            failed = 1;
        else if (half)
            backward_group(&s, i / G, i % G, scratch, out, softmax, grad, grad_q, grad_k, grad_v, 1);
        else
            backward_group(&s, i / G, i % G, scratch, out, softmax, grad, grad_q, grad_k, grad_v, 0);
    }
    return -failed;
}
