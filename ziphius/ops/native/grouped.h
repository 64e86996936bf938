/* Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): H queries a token share fewer keys and values, with
 * the biases (Qwen2) or the norms by head (Qwen3) that a family adds.
 */
#pragma once
#include "attend.h"

/* x += bias[from .. from+width), where there is one. */
static void add_bias(float *x, Weight bias, int64_t from, int64_t width) {
    for (int64_t k = 0; k < width && bias.data; k += W)
        store_n(x, k, load_n(x, k, width - k, 0) + load_n(bias.data, from + k, width - k, (int)bias.kind), width - k, 0);
}

/* A head of token t: normalised where the network does so, then rotated, first half against second, and scaled. */
static void turn_head(const Job *j, int64_t t, Weight weight, float scale, float *x) {
    const Shape *s = j->s;
    const float *cosine = angles(j, j->cache->cosine, t), *sine = angles(j, j->cache->sine, t);
    int64_t half = s->key / 2;
    if (weight.data) norm(x, 0, 1, s->key, weight, s->eps, x, 0);
    for (int64_t k = 0; k < half; k += W) {
        int64_t left = half - k;
        vf a = load_n(x, k, left, 0) * scale, b = load_n(x, half + k, left, 0) * scale;
        vf c = load_n(cosine, k, left, 0), d = load_n(sine, k, left, 0);
        store_n(x, k, a * c - b * d, left, 0);
        store_n(x, half + k, b * c + a * d, left, 0);
    }
}

static void store_heads(const Job *j, const Layer *w, int64_t layer) {
    const Shape *s = j->s;
    for (int64_t t = j->part; t < j->n; t += j->parts) {
        float *entry = j->entry + t * s->X;
        add_bias(entry, w->k_bias, 0, s->groups * s->key);
        add_bias(entry + s->value_start, w->v_bias, 0, s->groups * s->value);
        for (int64_t g = 0; g < s->groups; g++) turn_head(j, t, w->k_norm, 1, entry + g * s->key);
        store_entry(j, layer, t);
    }
}

static void grouped_attention(const Job *j, const Layer *w, int64_t layer) {
    const Shape *s = j->s;
    int64_t n = j->n, part = j->part, parts = j->parts, ldq = s->H * s->key;
    int64_t keys = s->groups * s->key, values = s->groups * s->value;
    Share share = share_of(j);
    int ready = 0;
    linear(j->normed, s->D, n, w->k, 0, s->D, cut(keys, part, parts), cut(keys, part + 1, parts), j->entry, s->X,
           j->packed, &ready);
    linear(j->normed, s->D, n, w->v, 0, s->D, cut(values, part, parts), cut(values, part + 1, parts),
           j->entry + s->value_start, s->X, j->packed, &ready);
    linear(j->normed, s->D, n, w->q, 0, s->D, cut(ldq, part, parts), cut(ldq, part + 1, parts), j->q, ldq, j->packed,
           &ready);
    meet(j);
    store_heads(j, w, layer);
    for (int64_t t = share.t0; t < share.t1; t++) {
        for (int64_t h = share.h0; h < share.h1; h++) {
            float *q = j->q + t * ldq + h * s->key;
            add_bias(q, w->q_bias, h * s->key, s->key);
            turn_head(j, t, w->q_norm, s->scale, q);
        }
    }
    meet(j);
    attend(j, j->q, layer, share);
    meet(j);
    add_output(j, j->q, w->o);
    meet(j);
}
