/* What the parts of a step share: its shape, its weights, its cache, and one thread's work.
 *
 * n tokens, D model, H heads, X the width of a cache entry, S tokens seen; of latent attention N no-position part, R
 * rope part, V value head, C latent, Q query latent (0: none); of mixtures E experts, K of them a token, F expert hidden.
 */
#pragma once
#include "linear.h"
#include "pages.h"

/* Three matrices that need not lie side by side: a folder's are used where it has them. */
typedef struct {
    Weight gate, up, down;
} Mlp;

/* One layer. Weights that a network does not have are null. `q` makes the queries, of the model's states or of their
 * latents, where there is a `q_a`; `q_norm` is of those latents, or of each head where attention is grouped. */
typedef struct {
    Weight input_norm, post_norm, q, q_norm, o;
    Weight q_a, kv_a, kv_norm, kv_b;               /* latent attention */
    Weight k, v, k_norm, q_bias, k_bias, v_bias;   /* grouped attention */
    Weight router, router_bias;
    Mlp dense;          /* or shared */
    int64_t hidden;     /* its width; 0 where there is none */
    const Mlp *experts; /* [E]; null in a dense layer */
} Layer;

/* An entry of the cache holds `groups` keys side by side, and as many values from `value_start` on; H / groups queries
 * share one. C is 0 where attention is grouped; then N is 0 too, and R and V are `key`. */
typedef struct {
    int64_t D, H, groups, key, value, value_start, X;
    int64_t N, R, V, C, Q;
    int64_t E, K, F, expert_groups, kept_groups, router_flags;
    int64_t widest; /* the largest hidden of any MLP */
    int64_t paged;  /* whether experts are to be read from disk ahead of their use */
    float eps, latent_eps, scale, factor;
} Shape;

typedef struct {
    void *data; /* [layers][slots][X] */
    int64_t layer, half, block;
    const int32_t *tables;
    int64_t columns; /* of the tables */
    const float *cosine, *sine;
} Cache;

typedef struct {
    const int32_t *rows;
    const int64_t *positions, *slots;
    float *x, *out;
} Tokens;

/* One thread's work: its tokens, its part of every product, and where intermediate results lie. */
typedef struct {
    const Shape *s;
    const Cache *cache;
    Tokens tokens;
    int64_t n, part, parts;
    float *low, *q, *entry, *wide, *o, *hidden;                           /* shared by the parts */
    float *normed, *low_normed, *gathered, *inner, *packed, *seen, *gate; /* this thread's own */
    int64_t *indices, *order, *start;
    float *weights;
} Job;

static void meet(const Job *j) {
    if (j->parts > 1) {
#pragma omp barrier
    }
}

INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Where part `part` of `total` begins, in units of sixteen. */
INLINE int64_t cut(int64_t total, int64_t part, int64_t parts) {
    return part == parts ? total : total / W * part / parts * W;
}

static void norm(const float *x, int64_t ldx, int64_t n, int64_t width, Weight weight, float eps, float *y, int64_t ldy) {
    for (int64_t t = 0; t < n; t++) {
        vf sum = splat(0);
        for (int64_t k = 0; k < width; k += W) {
            vf v = load_n(x, t * ldx + k, width - k, 0);
            sum += v * v;
        }
        float r = 1.0f / sqrtf(hsum(sum) / (float)width + eps);
        for (int64_t k = 0; k < width; k += W) {
            vf v = load_n(x, t * ldx + k, width - k, 0) * r * load_n(weight.data, k, width - k, (int)weight.kind);
            store_n(y, t * ldy + k, v, width - k, 0);
        }
    }
}

/* The angles of a token: cosines, or sines, of its R/2 pairs. */
INLINE const float *angles(const Job *j, const float *table, int64_t t) {
    return table + j->tokens.positions[t] * (j->s->R / 2);
}

/* A token's new entry joins the cache. */
static void store_entry(const Job *j, int64_t layer, int64_t t) {
    const Cache *c = j->cache;
    int64_t X = j->s->X, to = layer * c->layer + j->tokens.slots[t] * X;
    const float *entry = j->entry + t * X;
    for (int64_t k = 0; k < X; k += W) store_n(c->data, to + k, load_n(entry, k, X - k, 0), X - k, (int)c->half);
}

/* x += o · what attention found, for this part's columns. */
static void add_output(const Job *j, const float *found, Weight o) {
    const Shape *s = j->s;
    int64_t columns = s->H * s->V, d0 = cut(s->D, j->part, j->parts), d1 = cut(s->D, j->part + 1, j->parts);
    int ready = 0;
    linear(found, columns, j->n, o, 0, columns, d0, d1, j->gathered, s->D, j->packed, &ready);
    for (int64_t t = 0; t < j->n; t++)
        for (int64_t d = d0; d < d1; d++) j->tokens.x[t * s->D + d] += j->gathered[t * s->D + d];
}
