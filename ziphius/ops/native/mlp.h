/* A layer's MLP, dense or shared, and its routed experts. */
#pragma once
#include "step.h"

int64_t router_forward(const float *logits, const float *bias, float *scores, int64_t *indices, float *weights,
                       int64_t N, int64_t E, int64_t K, int64_t G, int64_t kept, float factor, int flags);

/* hidden[i][f0..f1) = silu(gate) * up of `n` rows of x; both matrices [F][D]. */
static void go_up(const Job *j, const float *x, int64_t n, const Mlp *w, int64_t F, float *hidden, int *ready) {
    int64_t D = j->s->D, f0 = cut(F, j->part, j->parts), f1 = cut(F, j->part + 1, j->parts);
    linear(x, D, n, w->gate, 0, D, f0, f1, j->inner, 2 * F, j->packed, ready);
    linear(x, D, n, w->up, 0, D, f0, f1, j->inner + F, 2 * F, j->packed, ready);
    for (int64_t t = 0; t < n; t++)
        for (int64_t f = f0; f < f1; f += W) {
            vf gate = load_n(j->inner, t * 2 * F + f, f1 - f, 0), up = load_n(j->inner, t * 2 * F + F + f, f1 - f, 0);
            store_n(hidden, t * F + f, gate * sigmoid(gate) * up, f1 - f, 0);
        }
}

/* x[token] += weight * down · hidden[i] for this part's columns; token(i) is i where `order` is null. */
static void go_down(const Job *j, const float *hidden, int64_t n, const Mlp *w, int64_t F, const int64_t *order) {
    int64_t D = j->s->D, d0 = cut(D, j->part, j->parts), d1 = cut(D, j->part + 1, j->parts);
    int ready = 0;
    linear(hidden, F, n, w->down, 0, F, d0, d1, j->gathered, D, j->packed, &ready);
    for (int64_t i = 0; i < n; i++) {
        float weight = order ? j->weights[order[i]] : 1;
        float *x = j->tokens.x + (order ? order[i] / j->s->K : i) * D;
        for (int64_t d = d0; d < d1; d++) x[d] += weight * j->gathered[i * D + d];
    }
}

/* Pairs (token, k) sorted by expert: `order` holds t*K+k, expert e's lie at start[e]..start[e+1]. */
static int64_t choose_experts(const Job *j, const Layer *w) {
    const Shape *s = j->s;
    float *scores = j->gate + j->n * s->E, *bias = w->router_bias.data ? scores + j->n * s->E : NULL;
    if (bias)
        for (int64_t e = 0; e < s->E; e++) bias[e] = load1(w->router_bias.data, e, (int)w->router_bias.kind);
    if (w->router.kind)
        linear_dots(j->normed, s->D, j->n, w->router.data, 0, s->D, 0, s->E, j->gate, s->E, 1);
    else
        linear_dots(j->normed, s->D, j->n, w->router.data, 0, s->D, 0, s->E, j->gate, s->E, 0);
    if (router_forward(j->gate, bias, scores, j->indices, j->weights, j->n, s->E, s->K, s->expert_groups, s->kept_groups, s->factor,
                       (int)s->router_flags))
        return -1;
    memset(j->start, 0, (size_t)(s->E + 2) * sizeof *j->start);
    int64_t pairs = j->n * s->K;
    for (int64_t i = 0; i < pairs; i++) j->start[j->indices[i] + 2]++;
    for (int64_t e = 0; e < s->E; e++) j->start[e + 2] += j->start[e + 1];
    for (int64_t i = 0; i < pairs; i++) j->order[j->start[j->indices[i] + 1]++] = i;
    return 0;
}

/* Have the chosen experts read while the shared one computes, each thread a part of them. */
static void page_in(const Job *j, const Mlp *experts) {
    int64_t size = j->s->F * j->s->D;
    for (int64_t e = j->part; e < j->s->E; e += j->parts)
        if (j->start[e + 1] > j->start[e]) {
            pages_wanted(experts[e].gate.data, bytes_of(experts[e].gate, size));
            pages_wanted(experts[e].up.data, bytes_of(experts[e].up, size));
            pages_wanted(experts[e].down.data, bytes_of(experts[e].down, size));
        }
}

static int64_t mlp(const Job *j, const Layer *w) {
    const Shape *s = j->s;
    int64_t D = s->D, n = j->n, F = s->F, failed = 0;
    float *of_experts = j->hidden + n * w->hidden;
    int ready = 0;
    norm(j->tokens.x, D, n, D, w->post_norm, s->eps, j->normed, D);
    if (w->experts) {
        failed = choose_experts(j, w);
        if (s->paged && !failed) page_in(j, w->experts);
    }
    if (w->hidden) go_up(j, j->normed, n, &w->dense, w->hidden, j->hidden, &ready);
    if (w->experts) {
        for (int64_t e = 0; e < s->E && !failed; e++) {
            int64_t first = j->start[e], count = j->start[e + 1] - first;
            int each = 0;
            for (int64_t i = 0; i < count; i++)
                memcpy(j->gathered + i * D, j->normed + j->order[first + i] / s->K * D, (size_t)D * 4);
            if (count) go_up(j, j->gathered, count, w->experts + e, F, of_experts + first * F, &each);
        }
    }
    meet(j);
    if (w->hidden) go_down(j, j->hidden, n, &w->dense, w->hidden, NULL);
    if (w->experts)
        for (int64_t e = 0; e < s->E && !failed; e++) {
            int64_t first = j->start[e], count = j->start[e + 1] - first;
            if (count) go_down(j, of_experts + first * F, count, w->experts + e, F, j->order + first);
        }
    meet(j);
    return failed;
}
