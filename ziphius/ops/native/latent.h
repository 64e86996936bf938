/* Multi-head latent attention in its absorbed form (V2 2.1.2): the cache holds one latent and one rotated key a token,
 * which are key and value of all heads.
 */
#pragma once
#include "attend.h"

/* Pairs side by side in, first elements before second ones out, as ziphius.ops.apply_rope. */
INLINE void rotate(const float *x, const float *cosine, const float *sine, int64_t R, float scale, float *y) {
    for (int64_t i = 0; i < R / 2; i++) {
        float a = x[2 * i] * scale, b = x[2 * i + 1] * scale;
        y[i] = a * cosine[i] - b * sine[i];
        y[R / 2 + i] = b * cosine[i] + a * sine[i];
    }
}

/* Normalise and rotate the new entries, and store them. */
static void store_latents(const Job *j, Weight kv_norm, int64_t layer) {
    const Shape *s = j->s;
    const Cache *c = j->cache;
    for (int64_t t = j->part; t < j->n; t += j->parts) {
        float *entry = j->entry + t * s->X, turned[s->R];
        norm(entry, s->X, 1, s->C, kv_norm, s->latent_eps, entry, s->X);
        rotate(entry + s->C, angles(j, c->cosine, t), angles(j, c->sine, t), s->R, 1, turned);
        memcpy(entry + s->C, turned, sizeof turned);
        store_entry(j, layer, t);
    }
}

/* to[t][0..C) = scale * q[t][0..N) · w, w [N][C] from element `at`: the columns in pairs of vectors. */
INLINE void times_up(const float *q, int64_t ldq, const void *w, int64_t at, int64_t N, int64_t C, float scale,
                     float *to, int64_t ldt, int half, const int T) {
    for (int64_t k = 0; k < C; k += 2 * W) {
        int64_t left = C - k, rest = left > W ? left - W : 0;
        vf acc[4][2];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[t][0] = acc[t][1] = splat(0);
        for (int64_t i = 0; i < N; i++) {
            vf a = load_n(w, at + i * C + k, left, half), b = load_n(w, at + i * C + k + W, rest, half);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                acc[t][0] += q[t * ldq + i] * a;
                acc[t][1] += q[t * ldq + i] * b;
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            store_n(to, t * ldt + k, acc[t][0] * scale, left, 0);
            store_n(to, t * ldt + k + W, acc[t][1] * scale, rest, 0);
        }
    }
}

/* wide[t][h] = scale * [q_nope · W_UK ; rotated q_rope]. */
INLINE void absorb_queries(const Job *j, Weight kv_b, Share share, int half) {
    const Shape *s = j->s;
    int64_t K = s->N + s->R, ldq = s->H * K, ldt = s->H * s->X;
    for (int64_t h = share.h0; h < share.h1; h++) {
        int64_t at = h * (s->N + s->V) * s->C, t = share.t0;
        const float *q = j->q + h * K;
        float *to = j->wide + h * s->X;
        for (; t + 4 <= share.t1; t += 4)
            times_up(q + t * ldq, ldq, kv_b.data, at, s->N, s->C, s->scale, to + t * ldt, ldt, half, 4);
        for (; t < share.t1; t++)
            times_up(q + t * ldq, ldq, kv_b.data, at, s->N, s->C, s->scale, to + t * ldt, ldt, half, 1);
        for (t = share.t0; t < share.t1; t++) {
            rotate(q + t * ldq + s->N, angles(j, j->cache->cosine, t), angles(j, j->cache->sine, t), s->R, s->scale,
                   to + t * ldt + s->C);
        }
    }
}

static void latent_attention(const Job *j, const Layer *w, int64_t layer) {
    const Shape *s = j->s;
    int64_t X = s->X, n = j->n, part = j->part, parts = j->parts;
    Share share = share_of(j);
    int ready = 0, ready_low = 0;
    linear(j->normed, s->D, n, w->kv_a, 0, s->D, cut(X, part, parts), cut(X, part + 1, parts), j->entry, X, j->packed,
           &ready);
    int64_t rows = s->H * (s->N + s->R), m0 = cut(rows, part, parts), m1 = cut(rows, part + 1, parts);
    if (s->Q) {
        linear(j->normed, s->D, n, w->q_a, 0, s->D, cut(s->Q, part, parts), cut(s->Q, part + 1, parts), j->low,
               s->Q, j->packed, &ready);
        meet(j);
        norm(j->low, s->Q, n, s->Q, w->q_norm, s->latent_eps, j->low_normed, s->Q);
        linear(j->low_normed, s->Q, n, w->q, 0, s->Q, m0, m1, j->q, rows, j->packed, &ready_low);
    } else {
        linear(j->normed, s->D, n, w->q, 0, s->D, m0, m1, j->q, rows, j->packed, &ready);
    }
    meet(j);
    store_latents(j, w->kv_norm, layer);
    meet(j);
    if (w->kv_b.kind)
        absorb_queries(j, w->kv_b, share, 1);
    else
        absorb_queries(j, w->kv_b, share, 0);
    attend(j, j->wide, layer, share);
    for (int64_t h = share.h0; h < share.h1; h++) {
        int each = 0;
        linear(j->wide + (share.t0 * s->H + h) * X, s->H * X, share.t1 - share.t0, w->kv_b,
               (h * (s->N + s->V) + s->N) * s->C, s->C, 0, s->V, j->o + (share.t0 * s->H + h) * s->V, s->H * s->V,
               j->packed, &each);
    }
    meet(j);
    add_output(j, j->o, w->o);
    meet(j);
}
