/* A step of the network over a paged latent cache: layer after layer in one call, in fp32 on weights as they lie in
 * memory. The arithmetic is that of ziphius.model with the absorbed form of attention (V2 2.1.2).
 *
 * n tokens, D model, H heads, N no-position part, R rope part, V value head, C latent, X = C + R, Q query latent (0:
 * none), E experts, K of them a token, F expert hidden, S tokens seen.
 *
 * Threads either take tokens each, and never wait for one another, or share every product by its rows, and meet after
 * each. The first is for networks that fit the caches, the second for those that memory feeds.
 */
#include "linear.h"

int64_t router_forward(const float *logits, const float *bias, float *scores, int64_t *indices, float *weights,
                       int64_t N, int64_t E, int64_t K, int64_t G, int64_t kept, float factor, int flags);

typedef struct {
    Weight input_norm, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, o, post_norm, gate_up, down, gate, gate_bias, experts_up,
        experts_down;
    int64_t hidden; /* of the dense or shared MLP */
    int64_t routed; /* whether there are experts */
} Layer;

typedef struct {
    int64_t D, H, N, R, V, C, Q, E, K, G, kept, F, widest; /* widest: the largest hidden of any MLP */
    int64_t router_flags;
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
    float *low, *q, *entry, *wide, *o, *hidden;                          /* shared by the parts */
    float *normed, *low_normed, *gathered, *inner, *packed, *seen, *gate; /* this thread's own */
    int64_t *indices, *order, *start;
    float *weights;
} Job;

/* --- small things --------------------------------------------------------------------------------------------------- */

static void meet(const Job *j) {
    if (j->parts > 1) {
#pragma omp barrier
    }
}

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

/* Pairs side by side in, first elements before second ones out, as ziphius.ops.apply_rope. */
INLINE void rotate(const float *x, const float *cosine, const float *sine, int64_t R, float scale, float *y) {
    for (int64_t i = 0; i < R / 2; i++) {
        float a = x[2 * i] * scale, b = x[2 * i + 1] * scale;
        y[i] = a * cosine[i] - b * sine[i];
        y[R / 2 + i] = b * cosine[i] + a * sine[i];
    }
}

/* --- attention ------------------------------------------------------------------------------------------------------ */

/* Normalise and rotate the new entries, and store them. */
static void store_entries(const Job *j, Weight kv_norm, int64_t layer) {
    const Shape *s = j->s;
    const Cache *c = j->cache;
    int64_t X = s->C + s->R;
    for (int64_t t = j->part; t < j->n; t += j->parts) {
        float *entry = j->entry + t * X, turned[s->R];
        const float *angle_c = c->cosine + j->tokens.positions[t] * (s->R / 2);
        const float *angle_s = c->sine + j->tokens.positions[t] * (s->R / 2);
        norm(entry, X, 1, s->C, kv_norm, s->latent_eps, entry, X);
        rotate(entry + s->C, angle_c, angle_s, s->R, 1, turned);
        memcpy(entry + s->C, turned, sizeof turned);
        for (int64_t k = 0; k < X; k += W)
            store_n(c->data, layer * c->layer + j->tokens.slots[t] * X + k, load_n(entry, k, X - k, 0), X - k,
                    (int)c->half);
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

/* What a thread takes of the attention: heads h0..h1 of tokens t0..t1. */
typedef struct {
    int64_t h0, h1, t0, t1;
} Share;

/* wide[t][h] = scale * [q_nope · W_UK ; rotated q_rope]. */
INLINE void absorb_queries(const Job *j, Weight kv_b, Share share, int half) {
    const Shape *s = j->s;
    int64_t X = s->C + s->R, K = s->N + s->R, ldq = s->H * K, ldt = s->H * X;
    for (int64_t h = share.h0; h < share.h1; h++) {
        int64_t at = h * (s->N + s->V) * s->C, t = share.t0;
        const float *q = j->q + h * K;
        float *to = j->wide + h * X;
        for (; t + 4 <= share.t1; t += 4)
            times_up(q + t * ldq, ldq, kv_b.data, at, s->N, s->C, s->scale, to + t * ldt, ldt, half, 4);
        for (; t < share.t1; t++)
            times_up(q + t * ldq, ldq, kv_b.data, at, s->N, s->C, s->scale, to + t * ldt, ldt, half, 1);
        for (t = share.t0; t < share.t1; t++) {
            int64_t angle = j->tokens.positions[t] * (s->R / 2);
            rotate(q + t * ldq + s->N, j->cache->cosine + angle, j->cache->sine + angle, s->R, s->scale,
                   to + t * ldt + s->C);
        }
    }
}

/* Ask for a block of entries ahead of its use: sequences lie too scattered for the machine to guess. */
INLINE void fetch(const Cache *c, int64_t at, int64_t X, int half) {
    const char *bytes = (const char *)c->data + at * (half ? 2 : 4);
    for (int64_t i = 0; i < c->block * X * (half ? 2 : 4); i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

/* T heads of one token against everything it sees; the mixed latents replace the queries in `q` [T][X]. */
INLINE void attend_heads(const Job *j, float *q, int64_t layer, const int32_t *table, int64_t S, int half, const int T) {
    const Shape *s = j->s;
    const Cache *c = j->cache;
    int64_t X = s->C + s->R, ld = round_up(S, W) + W, base = layer * c->layer;
    float *p = j->seen, inverse[4];
    for (int64_t first = 0; first < S; first += c->block) {
        int64_t at = base + table[first / c->block] * c->block * X, count = S - first < c->block ? S - first : c->block;
        if (first + c->block < S) fetch(c, base + table[first / c->block + 1] * c->block * X, X, half);
        for (int64_t r = 0; r < count; r += SUMS / T)
            put_dots(dot_tile(q, X, c->data, at + r * X, X, count - r, X, half, T), p + first + r, ld, count - r, T);
    }
    for (int t = 0; t < T; t++) {
        float *row = p + t * ld;
        for (int64_t k = S; k < round_up(S, W); k++) row[k] = -INFINITY;
        vf top = splat(-INFINITY), sum = splat(0);
        for (int64_t k = 0; k < S; k += W) top = vmax(top, load(row, k, 0));
        float max = hmax(top);
        for (int64_t k = 0; k < S; k += W) {
            vf e = vexp(load(row, k, 0) - max);
            sum += e;
            store(row, k, e, 0);
        }
        inverse[t] = 1.0f / hsum(sum);
    }
    for (int64_t k = 0; k < s->C; k += 2 * W) {
        int64_t left = s->C - k, rest = left > W ? left - W : 0;
        vf acc[4][2];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) acc[t][0] = acc[t][1] = splat(0);
        for (int64_t first = 0; first < S; first += c->block) {
            int64_t at = base + table[first / c->block] * c->block * X + k;
            int64_t count = S - first < c->block ? S - first : c->block;
            for (int64_t r = 0; r < count; r++) {
                vf a = load_n(c->data, at + r * X, left, half);
                vf b = load_n(c->data, at + r * X + W, rest, half);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) {
                    acc[t][0] += p[t * ld + first + r] * a;
                    acc[t][1] += p[t * ld + first + r] * b;
                }
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            store_n(q, t * X + k, acc[t][0] * inverse[t], left, 0);
            store_n(q, t * X + k + W, acc[t][1] * inverse[t], rest, 0);
        }
    }
}

INLINE void attend(const Job *j, int64_t layer, Share share, int half) {
    int64_t X = j->s->C + j->s->R, h1 = share.h1;
    for (int64_t t = share.t0; t < share.t1; t++) {
        const int32_t *table = j->cache->tables + j->tokens.rows[t] * j->cache->columns;
        int64_t S = j->tokens.positions[t] + 1, h = share.h0;
        float *q = j->wide + t * j->s->H * X;
        if (t + 1 < share.t1) {
            int64_t next = j->cache->tables[j->tokens.rows[t + 1] * j->cache->columns];
            fetch(j->cache, layer * j->cache->layer + next * j->cache->block * X, X, half);
        }
        for (; h + 4 <= h1; h += 4) attend_heads(j, q + h * X, layer, table, S, half, 4);
        for (; h + 2 <= h1; h += 2) attend_heads(j, q + h * X, layer, table, S, half, 2);
        for (; h < h1; h++) attend_heads(j, q + h * X, layer, table, S, half, 1);
    }
}

/* By heads, so that each thread reads its own part of the weights; where there are tokens enough, by tokens, so that all
 * heads share what is read of the cache. */
static Share share_of(const Job *j) {
    int64_t H = j->s->H, n = j->n, part = j->part, parts = j->parts;
    if (n < 4 * parts) return (Share){H * part / parts, H * (part + 1) / parts, 0, n};
    return (Share){0, H, n * part / parts, n * (part + 1) / parts};
}

static void attention(const Job *j, const Layer *w, int64_t layer) {
    const Shape *s = j->s;
    int64_t K = s->N + s->R, X = s->C + s->R, n = j->n, part = j->part, parts = j->parts;
    Share share = share_of(j);
    int ready = 0, ready_low = 0;
    norm(j->tokens.x, s->D, n, s->D, w->input_norm, s->eps, j->normed, s->D);
    linear(j->normed, s->D, n, w->kv_a, 0, s->D, cut(X, part, parts), cut(X, part + 1, parts), j->entry, X, j->packed,
           &ready);
    int64_t rows = s->H * K, m0 = cut(rows, part, parts), m1 = cut(rows, part + 1, parts);
    if (s->Q) {
        linear(j->normed, s->D, n, w->q_a, 0, s->D, cut(s->Q, part, parts), cut(s->Q, part + 1, parts), j->low,
               s->Q, j->packed, &ready);
        meet(j);
        norm(j->low, s->Q, n, s->Q, w->q_norm, s->latent_eps, j->low_normed, s->Q);
        linear(j->low_normed, s->Q, n, w->q_b, 0, s->Q, m0, m1, j->q, rows, j->packed, &ready_low);
    } else {
        linear(j->normed, s->D, n, w->q_b, 0, s->D, m0, m1, j->q, rows, j->packed, &ready);
    }
    meet(j);
    store_entries(j, w->kv_norm, layer);
    meet(j);
    if (w->kv_b.kind)
        absorb_queries(j, w->kv_b, share, 1);
    else
        absorb_queries(j, w->kv_b, share, 0);
    if (j->cache->half)
        attend(j, layer, share, 1);
    else
        attend(j, layer, share, 0);
    for (int64_t h = share.h0; h < share.h1; h++) {
        int each = 0;
        linear(j->wide + (share.t0 * s->H + h) * X, s->H * X, share.t1 - share.t0, w->kv_b,
               (h * (s->N + s->V) + s->N) * s->C, s->C, 0, s->V, j->o + (share.t0 * s->H + h) * s->V, s->H * s->V,
               j->packed, &each);
    }
    meet(j);
    int64_t d0 = cut(s->D, part, parts), d1 = cut(s->D, part + 1, parts);
    ready = 0;
    linear(j->o, s->H * s->V, n, w->o, 0, s->H * s->V, d0, d1, j->gathered, s->D, j->packed, &ready);
    for (int64_t t = 0; t < n; t++)
        for (int64_t d = d0; d < d1; d++) j->tokens.x[t * s->D + d] += j->gathered[t * s->D + d];
    meet(j);
}

/* --- MLPs ----------------------------------------------------------------------------------------------------------- */

/* hidden[i][f0..f1) = silu(gate) * up of `n` rows of x; gate and up are the halves of a matrix [2F][D] at `at`. */
static void go_up(const Job *j, const float *x, int64_t n, Weight w, int64_t at, int64_t F, float *hidden, int *ready) {
    int64_t D = j->s->D, f0 = cut(F, j->part, j->parts), f1 = cut(F, j->part + 1, j->parts);
    linear(x, D, n, w, at, D, f0, f1, j->inner, 2 * F, j->packed, ready);
    linear(x, D, n, w, at, D, F + f0, F + f1, j->inner, 2 * F, j->packed, ready);
    for (int64_t t = 0; t < n; t++)
        for (int64_t f = f0; f < f1; f += W) {
            vf gate = load_n(j->inner, t * 2 * F + f, f1 - f, 0), up = load_n(j->inner, t * 2 * F + F + f, f1 - f, 0);
            store_n(hidden, t * F + f, gate * sigmoid(gate) * up, f1 - f, 0);
        }
}

/* x[token] += weight * down · hidden[i] for this part's columns; token(i) is i where `order` is null. */
static void go_down(const Job *j, const float *hidden, int64_t n, Weight w, int64_t at, int64_t F, const int64_t *order) {
    int64_t D = j->s->D, d0 = cut(D, j->part, j->parts), d1 = cut(D, j->part + 1, j->parts);
    int ready = 0;
    linear(hidden, F, n, w, at, F, d0, d1, j->gathered, D, j->packed, &ready);
    for (int64_t i = 0; i < n; i++) {
        float weight = order ? j->weights[order[i]] : 1;
        float *x = j->tokens.x + (order ? order[i] / j->s->K : i) * D;
        for (int64_t d = d0; d < d1; d++) x[d] += weight * j->gathered[i * D + d];
    }
}

/* Pairs (token, k) sorted by expert: `order` holds t*K+k, expert e's lie at start[e]..start[e+1]. */
static int64_t choose_experts(const Job *j, const Layer *w) {
    const Shape *s = j->s;
    float *scores = j->gate + j->n * s->E, *bias = w->gate_bias.data ? scores + j->n * s->E : NULL;
    if (bias)
        for (int64_t e = 0; e < s->E; e++) bias[e] = load1(w->gate_bias.data, e, (int)w->gate_bias.kind);
    if (w->gate.kind)
        linear_dots(j->normed, s->D, j->n, w->gate.data, 0, s->D, 0, s->E, j->gate, s->E, 1);
    else
        linear_dots(j->normed, s->D, j->n, w->gate.data, 0, s->D, 0, s->E, j->gate, s->E, 0);
    if (router_forward(j->gate, bias, scores, j->indices, j->weights, j->n, s->E, s->K, s->G, s->kept, s->factor,
                       (int)s->router_flags))
        return -1;
    memset(j->start, 0, (size_t)(s->E + 2) * sizeof *j->start);
    int64_t pairs = j->n * s->K;
    for (int64_t i = 0; i < pairs; i++) j->start[j->indices[i] + 2]++;
    for (int64_t e = 0; e < s->E; e++) j->start[e + 2] += j->start[e + 1];
    for (int64_t i = 0; i < pairs; i++) j->order[j->start[j->indices[i] + 1]++] = i;
    return 0;
}

static int64_t mlp(const Job *j, const Layer *w) {
    const Shape *s = j->s;
    int64_t D = s->D, n = j->n, F = s->F, failed = 0;
    float *of_experts = j->hidden + n * w->hidden;
    int ready = 0;
    norm(j->tokens.x, D, n, D, w->post_norm, s->eps, j->normed, D);
    go_up(j, j->normed, n, w->gate_up, 0, w->hidden, j->hidden, &ready);
    if (w->routed) {
        failed = choose_experts(j, w);
        for (int64_t e = 0; e < s->E && !failed; e++) {
            int64_t first = j->start[e], count = j->start[e + 1] - first;
            int each = 0;
            for (int64_t i = 0; i < count; i++)
                memcpy(j->gathered + i * D, j->normed + j->order[first + i] / s->K * D, (size_t)D * 4);
            if (count) go_up(j, j->gathered, count, w->experts_up, e * 2 * F * D, F, of_experts + first * F, &each);
        }
    }
    meet(j);
    go_down(j, j->hidden, n, w->down, 0, w->hidden, NULL);
    if (w->routed)
        for (int64_t e = 0; e < s->E && !failed; e++) {
            int64_t first = j->start[e], count = j->start[e + 1] - first;
            if (count) go_down(j, of_experts + first * F, count, w->experts_down, e * D * F, F, j->order + first);
        }
    meet(j);
    return failed;
}

/* --- the step ------------------------------------------------------------------------------------------------------- */

static int64_t run(const Job *j, const Layer *layers, int64_t first, int64_t count, Weight final) {
    int64_t failed = 0;
    tiles_begin();
    for (int64_t i = 0; i < count; i++) {
        attention(j, layers + i, first + i);
        failed |= mlp(j, layers + i);
    }
    tiles_end();
    for (int64_t t = j->part; t < j->n; t += j->parts)
        norm(j->tokens.x + t * j->s->D, 0, 1, j->s->D, final, j->s->eps, j->tokens.out + t * j->s->D, 0);
    return failed;
}

/* Memory handed out piece by piece; without a base it only counts. */
typedef struct {
    float *base;
    int64_t used;
} Arena;

static void *take(Arena *arena, int64_t floats) {
    int64_t at = arena->used;
    arena->used += round_up(floats, W);
    return arena->base ? arena->base + at : NULL;
}

static void take_shared(Job *j, Arena *arena) {
    const Shape *s = j->s;
    j->low = take(arena, j->n * s->Q);
    j->q = take(arena, j->n * s->H * (s->N + s->R));
    j->entry = take(arena, j->n * (s->C + s->R));
    j->wide = take(arena, j->n * s->H * (s->C + s->R));
    j->o = take(arena, j->n * s->H * s->V);
    j->hidden = take(arena, j->n * (s->widest + s->K * s->F));
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static void take_own(Job *j, int64_t longest, Arena *arena) {
    const Shape *s = j->s;
    int64_t n = j->n, widest = most(s->widest, s->F);
    int64_t columns = most(most(s->D, s->H * s->V), most(most(s->Q, s->C), widest));
    j->normed = take(arena, n * s->D);
    j->low_normed = take(arena, n * s->Q);
    j->gathered = take(arena, n * s->D);
    j->inner = take(arena, n * 2 * widest);
    j->packed = take(arena, linear_scratch(n, columns));
    j->seen = take(arena, 4 * (round_up(longest, W) + W));
    j->gate = take(arena, (2 * n + 1) * s->E);
    j->weights = take(arena, n * s->K);
    j->indices = take(arena, 2 * n * s->K); /* int64 takes the room of two floats */
    j->order = take(arena, 2 * n * s->K);
    j->start = take(arena, 2 * (s->E + 2));
}

/* Where the tokens of thread `part` begin: never inside a sequence, whose later tokens attend to its earlier ones. */
static int64_t share_begins(const int32_t *rows, int64_t n, int64_t part, int64_t parts) {
    int64_t at = n * part / parts;
    while (at > 0 && at < n && rows[at] == rows[at - 1]) at++;
    return at;
}

static int shares_are_even(const int32_t *rows, int64_t n, int64_t parts) {
    for (int64_t p = 0; p < parts; p++)
        if (share_begins(rows, n, p + 1, parts) - share_begins(rows, n, p, parts) > n / parts + n / 8 + 1) return 0;
    return 1;
}

static void lay_out(Job *jobs, int64_t parts, int by_tokens, Job all, int64_t longest, Arena *arena) {
    if (!by_tokens) take_shared(&all, arena);
    for (int64_t p = 0; p < parts; p++) {
        Job *j = jobs + p;
        *j = all;
        j->part = p;
        j->parts = parts;
        if (by_tokens) {
            int64_t begin = share_begins(all.tokens.rows, all.n, p, parts);
            j->n = share_begins(all.tokens.rows, all.n, p + 1, parts) - begin;
            j->part = 0;
            j->parts = 1;
            j->tokens.rows += begin;
            j->tokens.positions += begin;
            j->tokens.slots += begin;
            j->tokens.x += begin * all.s->D;
            j->tokens.out += begin * all.s->D;
            take_shared(j, arena);
        }
        take_own(j, longest, arena);
    }
}

/* x [n][D]: what enters the first of `count` layers; overwritten. out [n][D]: after the final norm.
 * `by_tokens`: threads take tokens where those can be shared evenly, rather than rows of products. */
int64_t decoder_run(const Shape *s, const Layer *layers, int64_t first, int64_t count, const Weight *final,
                    const Cache *cache, const int32_t *rows, const int64_t *positions, const int64_t *slots, float *x,
                    float *out, int64_t n, int threads, int by_tokens) {
    int64_t longest = 0, parts = 1, failed = 0;
#ifdef _OPENMP
    if (threads > 1) parts = threads;
#endif
    for (int64_t t = 0; t < n; t++) longest = most(longest, positions[t] + 1);
    by_tokens = by_tokens && shares_are_even(rows, n, parts);
    Job jobs[parts], all = {.s = s, .cache = cache, .tokens = {rows, positions, slots, x, out}, .n = n};
    Arena arena = {0};
    lay_out(jobs, parts, by_tokens, all, longest, &arena);
    arena = (Arena){.base = scratch_of_thread(arena.used)};
    if (!arena.base) return -1;
    lay_out(jobs, parts, by_tokens, all, longest, &arena);
    if (parts == 1) return run(jobs, layers, first, count, *final);
#pragma omp parallel num_threads((int)parts) reduction(| : failed)
    {
#ifdef _OPENMP
        failed |= run(jobs + omp_get_thread_num(), layers, first, count, *final);
#endif
    }
    return failed;
}

/* out [n][rows] = x [n][columns] · w, its rows shared by the threads. */
int64_t decoder_linear(const float *x, const Weight *w, int64_t n, int64_t rows, int64_t columns, float *out,
                       int threads) {
    int64_t failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        int64_t part = 0, parts = 1;
#ifdef _OPENMP
        part = omp_get_thread_num();
        parts = omp_get_num_threads();
#endif
        float *packed = scratch_of_thread(linear_scratch(n, columns));
        int ready = 0;
        failed |= packed ? 0 : -1;
        tiles_begin();
        if (packed)
            linear(x, columns, n, *w, 0, columns, cut(rows, part, parts), cut(rows, part + 1, parts), out, rows,
                   packed, &ready);
        tiles_end();
    }
    return failed;
}
