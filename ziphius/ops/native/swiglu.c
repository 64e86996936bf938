/* silu(gate) * up over rows of [gate; up], each F wide, optionally times one weight a row (an expert's share). */
#include "vec.h"

/* slots [rows] int32 or null: which weight a row takes; a row with slot -1 is padding and gives zero. */
INLINE void forward(const void *pre, const int32_t *slots, const float *weights, void *y, int64_t rows, int64_t F,
                    int threads, int half) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        if (slots && slots[i] < 0) {
            memset((char *)y + i * F * (half ? 2 : 4), 0, (size_t)F * (half ? 2 : 4));
            continue;
        }
        float weight = slots ? weights[slots[i]] : 1;
        for (int64_t j = 0; j < F; j += W) {
            vf g = load_n(pre, 2 * i * F + j, F - j, half), u = load_n(pre, (2 * i + 1) * F + j, F - j, half);
            store_n(y, i * F + j, g * sigmoid(g) * u * weight, F - j, half);
        }
    }
}

/* grad_pre for grad [rows, F]; with slots also grad_weights (one a slot) and the forward's result y again. */
INLINE void backward(const void *pre, const int32_t *slots, const float *weights, const void *grad, void *grad_pre,
                     void *y, float *grad_weights, int64_t rows, int64_t F, int threads, int half) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        if (slots && slots[i] < 0) {
            memset((char *)grad_pre + 2 * i * F * (half ? 2 : 4), 0, (size_t)(2 * F) * (half ? 2 : 4));
            memset((char *)y + i * F * (half ? 2 : 4), 0, (size_t)F * (half ? 2 : 4));
            continue;
        }
        float weight = slots ? weights[slots[i]] : 1;
        vf dot = splat(0);
        for (int64_t j = 0; j < F; j += W) {
            vf g = load_n(pre, 2 * i * F + j, F - j, half), u = load_n(pre, (2 * i + 1) * F + j, F - j, half);
            vf from = load_n(grad, i * F + j, F - j, half), s = sigmoid(g), silu = g * s;
            vf scaled = from * weight;
            if (slots) {
                dot += from * silu * u;
                store_n(y, i * F + j, silu * u * weight, F - j, half);
            }
            store_n(grad_pre, 2 * i * F + j, scaled * u * (s + silu * (1.0f - s)), F - j, half);
            store_n(grad_pre, (2 * i + 1) * F + j, scaled * silu, F - j, half);
        }
        if (slots) grad_weights[slots[i]] = hsum(dot);
    }
}

int64_t swiglu_forward(const void *pre, const int32_t *slots, const float *weights, void *y, int64_t rows, int64_t F,
                       int threads, int half) {
    if (half)
        forward(pre, slots, weights, y, rows, F, threads, 1);
    else
        forward(pre, slots, weights, y, rows, F, threads, 0);
    return 0;
}

int64_t swiglu_backward(const void *pre, const int32_t *slots, const float *weights, const void *grad, void *grad_pre,
                        void *y, float *grad_weights, int64_t rows, int64_t F, int threads, int half) {
    if (half)
        backward(pre, slots, weights, grad, grad_pre, y, grad_weights, rows, F, threads, 1);
    else
        backward(pre, slots, weights, grad, grad_pre, y, grad_weights, rows, F, threads, 0);
    return 0;
}
