/* A step of the network over a paged cache: layer after layer in one call, in fp32 on weights as they lie in memory. The
 * arithmetic is that of ziphius.model.
 *
 * Threads either take tokens each, and never wait for one another, or share every product by its rows, and meet after
 * each. The first is for networks that fit the caches, the second for those that memory feeds.
 */
#include "grouped.h"
#include "latent.h"
#include "mlp.h"

static int64_t run(const Job *j, const Layer *layers, int64_t first, int64_t count, Weight final) {
    const Shape *s = j->s;
    int64_t failed = 0;
    tiles_begin();
    for (int64_t i = 0; i < count; i++) {
        norm(j->tokens.x, s->D, j->n, s->D, layers[i].input_norm, s->eps, j->normed, s->D);
        if (s->C)
            latent_attention(j, layers + i, first + i);
        else
            grouped_attention(j, layers + i, first + i);
        failed |= mlp(j, layers + i);
    }
    tiles_end();
    for (int64_t t = j->part; t < j->n; t += j->parts)
        norm(j->tokens.x + t * s->D, 0, 1, s->D, final, s->eps, j->tokens.out + t * s->D, 0);
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
    j->entry = take(arena, j->n * s->X);
    j->wide = take(arena, s->C ? j->n * s->H * s->X : 0);
    j->o = take(arena, s->C ? j->n * s->H * s->V : 0);
    j->hidden = take(arena, j->n * (s->widest + s->K * s->F));
}

static void take_own(Job *j, int64_t longest, Arena *arena) {
    const Shape *s = j->s;
    int64_t n = j->n, widest = most(s->widest, s->F);
    int64_t columns = most(most(s->D, s->H * s->V), most(most(s->Q, s->C), widest));
    j->normed = take(arena, n * s->D);
    j->low_normed = take(arena, n * s->Q);
    j->gathered = take(arena, n * s->D);
    j->inner = take(arena, n * 2 * widest);
    j->packed = take(arena, linear_scratch(n, columns));
    j->seen = take(arena, ROWS * (round_up(longest, W) + W));
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

/* Bytes of the structures that the caller builds too. */
int64_t decoder_sizes(int64_t *out) {
    out[0] = sizeof(Weight), out[1] = sizeof(Layer), out[2] = sizeof(Shape), out[3] = sizeof(Cache);
    return 0;
}

int64_t decoder_scattered(const void *at, int64_t bytes) {
    pages_scattered(at, bytes);
    return 0;
}

int64_t decoder_wanted(const void *at, int64_t bytes) {
    pages_wanted(at, bytes);
    return 0;
}
