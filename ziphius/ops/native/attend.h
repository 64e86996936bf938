/* Queries against a paged cache, for attention of any kind: see `Shape` for what an entry holds.
 *
 * A few rows of queries are taken together, which share what is read of the cache: heads of one token that share keys,
 * or neighbouring tokens of one sequence. A row's result is the same bits however rows are taken together.
 */
#pragma once
#include "step.h"

enum { ROWS = 4 };           /* queries taken together */
enum { COST_OF_TOKEN = 64 }; /* a token's other work, in entries attended to */

/* What a thread takes of the attention: heads h0..h1 of tokens t0..t1. */
typedef struct {
    int64_t h0, h1, t0, t1;
} Share;

/* The first token of part `part`, so that all parts see about as many entries. */
static int64_t token_cut(const Job *j, int64_t part) {
    int64_t all = 0, taken = 0, t = 0;
    for (int64_t i = 0; i < j->n; i++) all += j->tokens.positions[i] + COST_OF_TOKEN;
    while (t < j->n && taken < all * part / j->parts) taken += j->tokens.positions[t++] + COST_OF_TOKEN;
    return part == j->parts ? j->n : t;
}

/* By heads, so that each thread reads its own part of the weights; where there are tokens enough, by tokens, so that all
 * heads share what is read of the cache. */
static Share share_of(const Job *j) {
    int64_t H = j->s->H, part = j->part, parts = j->parts;
    if (j->n < 4 * parts) return (Share){H * part / parts, H * (part + 1) / parts, 0, j->n};
    return (Share){0, H, token_cut(j, part), token_cut(j, part + 1)};
}

/* Ask for `values` of each entry of a block ahead of their use: sequences lie too scattered for the machine to guess. */
INLINE void fetch(const Cache *c, int64_t at, int64_t X, int64_t values, int half) {
    int64_t size = half ? 2 : 4;
    const char *bytes = (const char *)c->data + at * size;
    if (values == X) X = values = X * c->block;
    for (int64_t r = 0; r < c->block * values; r += values, bytes += X * size)
        for (int64_t i = 0; i < values * size; i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

/* Queries [key] at distance `ld`; row t sees the first S + t * more entries of the sequence with `table`. `keys` and
 * `values` are where those of their head begin in the layer's first slot. */
typedef struct {
    float *q;
    int64_t ld, S, more, keys, values;
    const int32_t *table;
} Rows;

/* p[t][i] = q[t] · key i for the first `seen` entries. */
INLINE void score(const Job *j, const Rows *rows, const float *q, int64_t seen, float *p, int64_t ldp, int half,
                  const int T) {
    const Cache *c = j->cache;
    int64_t X = j->s->X, key = j->s->key;
    for (int64_t first = 0; first < seen; first += c->block) {
        const int32_t *block = rows->table + first / c->block;
        int64_t at = rows->keys + *block * c->block * X, count = least(seen - first, c->block);
        if (first + c->block < seen) fetch(c, rows->keys + block[1] * c->block * X, X, key, half);
        for (int64_t i = 0; i < count; i += SUMS / T)
            put_dots(dot_tile(q, rows->ld, c->data, at + i * X, X, count - i, key, half, T, 0), p + first + i, ldp,
                     count - i, T);
    }
}

/* p becomes its exponentials, from each row's largest; entries from `own` on count as unseen. Returns 1 / their sum. */
static float weigh(float *p, int64_t own, int64_t seen) {
    vf top = splat(-INFINITY), sum = splat(0);
    for (int64_t k = own; k < round_up(seen, W); k++) p[k] = -INFINITY;
    for (int64_t k = 0; k < seen; k += W) top = vmax(top, load(p, k, 0));
    float max = hmax(top);
    for (int64_t k = 0; k < seen; k += W) {
        vf e = vexp(load(p, k, 0) - max);
        sum += e;
        store(p, k, e, 0);
    }
    return 1.0f / hsum(sum);
}

/* Columns k..k+16V of what the rows find, in place of their queries. */
INLINE void mix(const Job *j, const Rows *rows, int64_t seen, const float *p, int64_t ldp, const float *inverse,
                int64_t k, int half, const int T, const int V) {
    const Shape *s = j->s;
    const Cache *c = j->cache;
    vf acc[ROWS][4];
    int64_t left[4];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) left[v] = most(s->value - k - v * W, 0);
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc[t][v] = splat(0);
    for (int64_t first = 0; first < seen; first += c->block) {
        const int32_t *block = rows->table + first / c->block;
        int64_t at = rows->values + *block * c->block * s->X + k, count = least(seen - first, c->block);
        if (s->value_start && first + c->block < seen) /* else the scores have just read them */
            fetch(c, rows->values + block[1] * c->block * s->X + k, s->X, least(s->value - k, V * W), half);
        for (int64_t i = 0; i < count; i++) {
            vf value[4];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) value[v] = load_n(c->data, at + i * s->X + v * W, left[v], half);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[t][v] += p[t * ldp + first + i] * value[v];
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++)
            store_n(rows->q, t * rows->ld + k + v * W, acc[t][v] * inverse[t], left[v], 0);
}

/* T rows against everything they see; what they find [value] replaces their queries. */
INLINE void attend_rows(const Job *j, Rows rows, int half, const int T) {
    const int V = T == 1 ? 4 : 2; /* vectors of a value at a time: sums enough to hide what an addition takes */
    int64_t seen = rows.S + (T - 1) * rows.more, ldp = round_up(seen, W) + W;
    float *p = j->seen, inverse[ROWS];
    if (T == 3) { /* whose tile of dot products would fill badly */
        score(j, &rows, rows.q, seen, p, ldp, half, 2);
        score(j, &rows, rows.q + 2 * rows.ld, seen, p + 2 * ldp, ldp, half, 1);
    } else {
        score(j, &rows, rows.q, seen, p, ldp, half, T);
    }
    for (int t = 0; t < T; t++) inverse[t] = weigh(p + t * ldp, rows.S + t * rows.more, seen);
    for (int64_t k = 0; k < j->s->value; k += V * W) mix(j, &rows, seen, p, ldp, inverse, k, half, T, V);
}

/* Whether tokens t..t+3 follow one another in one sequence. */
static int is_run(const Job *j, int64_t t, int64_t end) {
    const int64_t *at = j->tokens.positions + t;
    const int32_t *rows = j->tokens.rows + t;
    return t + ROWS <= end && rows[ROWS - 1] == rows[0] && at[ROWS - 1] == at[0] + ROWS - 1;
}

/* Heads h0..h1 of token t, which share a key. */
INLINE void attend_heads(const Job *j, Rows rows, int64_t heads, int half) {
    for (; heads >= 4; heads -= 4, rows.q += 4 * rows.ld) attend_rows(j, rows, half, 4);
    if (heads == 3) attend_rows(j, rows, half, 3);
    if (heads == 2) attend_rows(j, rows, half, 2);
    if (heads == 1) attend_rows(j, rows, half, 1);
}

INLINE void attend_as(const Job *j, float *q, int64_t layer, Share share, int half) {
    const Shape *s = j->s;
    const Cache *c = j->cache;
    int64_t per = s->H / s->groups, ldq = s->H * s->key;
    for (int64_t g = 0; g < s->groups; g++) {
        int64_t h0 = most(share.h0, g * per), h1 = least(share.h1, (g + 1) * per), taken = 1;
        Rows rows = {.keys = layer * c->layer + g * s->key, .values = layer * c->layer + s->value_start + g * s->value};
        for (int64_t t = share.t0; t < share.t1 && h0 < h1; t += taken) {
            rows.table = c->tables + j->tokens.rows[t] * c->columns;
            rows.S = j->tokens.positions[t] + 1;
            taken = (h1 - h0) % ROWS && is_run(j, t, share.t1) ? ROWS : 1;
            if (taken == ROWS) {
                rows.ld = ldq, rows.more = 1;
                for (int64_t h = h0; h < h1; h++) rows.q = q + t * ldq + h * s->key, attend_rows(j, rows, half, ROWS);
                continue;
            }
            if (t + 1 < share.t1) {
                int64_t next = c->tables[j->tokens.rows[t + 1] * c->columns];
                fetch(c, rows.keys + next * c->block * s->X, s->X, s->key, half);
            }
            rows.q = q + t * ldq + h0 * s->key, rows.ld = s->key, rows.more = 0;
            attend_heads(j, rows, h1 - h0, half);
        }
    }
}

/* q [n][H][key]: in a token's place of each head, what it finds [value]. */
static void attend(const Job *j, float *q, int64_t layer, Share share) {
    if (j->cache->half)
        attend_as(j, q, layer, share, 1);
    else
        attend_as(j, q, layer, share, 0);
}
