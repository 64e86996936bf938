/* Cross-entropy over rows of logits [rows, V], temperature already a factor: z = logit * scale. */
#include "vec.h"

/* logprobs, entropy, log_sums [rows]. Returns -2 when a target is not in 0..V-1. */
INLINE void forward(const void *logits, const int64_t *targets, float *logprobs, float *entropy, float *log_sums,
                    int64_t rows, int64_t V, float scale, int threads, int half) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = i * V;
        vf top = splat(-INFINITY);
        int64_t j = 0;
        for (; j + W <= V; j += W) top = vmax(top, load(logits, at + j, half) * scale);
        float max = hmax(top);
        for (; j < V; j++) {
            float z = load1(logits, at + j, half) * scale;
            max = z > max ? z : max;
        }
        vf sum = splat(0), dot = splat(0);
        for (j = 0; j < V; j += W) {
            vf z = load_n(logits, at + j, V - j, half) * scale - max;
            if (V - j < W) z = choose(LANES < (int32_t)(V - j), z, splat(-200));
            vf e = vexp(z);
            sum += e;
            dot += e * z;
        }
        float total = hsum(sum), log_total = logf(total);
        log_sums[i] = max + log_total;
        entropy[i] = log_total - hsum(dot) / total;
        logprobs[i] = load1(logits, at + targets[i], half) * scale - max - log_total;
    }
}

/* In place: logits become grad * scale * (onehot - softmax). */
INLINE void backward(void *logits, const int64_t *targets, const float *log_sums, const float *grad, int64_t rows,
                     int64_t V, float scale, int threads, int half) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = i * V;
        float factor = grad[i] * scale, log_sum = log_sums[i];
        float chosen = vexp(splat(load1(logits, at + targets[i], half) * scale - log_sum))[0];
        for (int64_t j = 0; j < V; j += W)
            store_n(logits, at + j, vexp(load_n(logits, at + j, V - j, half) * scale - log_sum) * -factor, V - j, half);
        store1(logits, at + targets[i], factor * (1.0f - chosen), half);
    }
}

int64_t loss_forward(const void *logits, const int64_t *targets, float *logprobs, float *entropy, float *log_sums,
                     int64_t rows, int64_t V, float scale, int threads, int half) {
    for (int64_t i = 0; i < rows; i++)
        if (targets[i] < 0 || targets[i] >= V) return -2;
    if (half)
        forward(logits, targets, logprobs, entropy, log_sums, rows, V, scale, threads, 1);
    else
        forward(logits, targets, logprobs, entropy, log_sums, rows, V, scale, threads, 0);
    return 0;
}

int64_t loss_backward(void *logits, const int64_t *targets, const float *log_sums, const float *grad, int64_t rows,
                      int64_t V, float scale, int threads, int half) {
    if (half)
        backward(logits, targets, log_sums, grad, rows, V, scale, threads, 1);
    else
        backward(logits, targets, log_sums, grad, rows, V, scale, threads, 0);
    return 0;
}
