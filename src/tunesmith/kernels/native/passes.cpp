// Passes over states that a processor makes at once where PyTorch's operations make several, each with its own room.
// native_passes.py calls them with addresses; their plain forms, by which they are tested, are the kernels beside it.

#include "numbers.h"

namespace {

inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

struct Silu {
    static inline float value(float x) { return x * logistic(x); }
    static inline float slope(float x) {
        const float s = logistic(x);
        return s * (1.0f + x * (1.0f - s));
    }
};

// 0.5 x (1 + tanh u) = x logistic(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
    static constexpr float twice_root = 1.5957691216f;
    static inline float twice(float x) { return twice_root * (x + 0.044715f * x * x * x); }
    static inline float value(float x) { return x * logistic(twice(x)); }
    static inline float slope(float x) {
        const float s = logistic(twice(x));
        return s + x * s * (1.0f - s) * twice_root * (1.0f + 3.0f * 0.044715f * x * x);
    }
};

// out = x * inverse * scale, inverse = 1 / sqrt(mean of x^2 + epsilon), which is kept.
template <class X, class O>
void rms_norm(const X *x, const float *scale, O *out, float *inverse, long rows, long width, float epsilon,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long row = 0; row < rows; row++) {
        const X *from = x + row * width;
        O *to = out + row * width;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long d = 0; d < width; d++) sum += load(from[d]) * load(from[d]);
        const float factor = 1.0f / __builtin_sqrtf(sum / float(width) + epsilon);
        inverse[row] = factor;
#pragma omp simd
        for (long d = 0; d < width; d++) store(to[d], load(from[d]) * factor * scale[d]);
    }
}

// Gradients of x, and of the scale where `grad_scale` is there.
template <class X, class O>
void rms_norm_backward(const X *x, const float *scale, const float *inverse, const O *above, X *grad,
                       float *grad_scale, long rows, long width, int threads) {
    std::vector<float> sums(grad_scale ? size_t(threads) * width : 0);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        float *sum = sums.data() + (grad_scale ? size_t(part) * width : 0);
        for (long row = rows * part / threads; row < rows * (part + 1) / threads; row++) {
            const X *from = x + row * width;
            const O *given = above + row * width;
            X *to = grad + row * width;
            const float factor = inverse[row];
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (long d = 0; d < width; d++) dot += load(given[d]) * scale[d] * load(from[d]);
            const float share = dot * factor * factor / float(width);
            if (grad_scale) {
#pragma omp simd
                for (long d = 0; d < width; d++) sum[d] += load(given[d]) * load(from[d]) * factor;
            }
#pragma omp simd
            for (long d = 0; d < width; d++)
                store(to[d], (load(given[d]) * scale[d] - load(from[d]) * share) * factor);
        }
    }
    if (!grad_scale) return;
    std::fill(grad_scale, grad_scale + width, 0.0f);
    for (int part = 0; part < threads; part++)
        for (long d = 0; d < width; d++) grad_scale[d] += sums[size_t(part) * width + d];
}

// out = act(gate) * up
template <class X, class Act>
void gated(const X *gate, const X *up, X *out, long count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const long end = count * (part + 1) / threads;
#pragma omp simd
        for (long i = count * part / threads; i < end; i++) store(out[i], Act::value(load(gate[i])) * load(up[i]));
    }
}

// `grad` is that of the product and becomes that of the gate.
template <class X, class Act>
void gated_backward(const X *gate, const X *up, X *grad, X *grad_up, long count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        const long end = count * (part + 1) / threads;
#pragma omp simd
        for (long i = count * part / threads; i < end; i++) {
            const float g = load(gate[i]), above = load(grad[i]);
            store(grad_up[i], Act::value(g) * above);
            store(grad[i], Act::slope(g) * load(up[i]) * above);
        }
    }
}

// [a, b] becomes [a cos - b sin, b cos + a sin], over the halves of a head; where it turns back, the transpose of that.
// Heads lie side by side at each token, `stride` numbers from one token of x to the next; positions come again after
// `places` tokens.
template <class X, class P, class O>
void rotary(const X *x, const P *cosine, const P *sine, O *out, long tokens, long places, long heads, long width,
            long stride, int turns_back, int threads) {
    const long half = width / 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long token = 0; token < tokens; token++) {
        const P *c = cosine + token % places * width, *s = sine + token % places * width;
        for (long head = 0; head < heads; head++) {
            const X *from = x + token * stride + head * width;
            O *to = out + (token * heads + head) * width;
            if (turns_back) {
#pragma omp simd
                for (long d = 0; d < half; d++) {
                    const float a = load(from[d]), b = load(from[half + d]);
                    store(to[d], a * load(c[d]) + b * load(s[half + d]));
                    store(to[half + d], b * load(c[half + d]) - a * load(s[d]));
                }
            } else {
#pragma omp simd
                for (long d = 0; d < half; d++) {
                    const float a = load(from[d]), b = load(from[half + d]);
                    store(to[d], a * load(c[d]) - b * load(s[d]));
                    store(to[half + d], b * load(c[half + d]) + a * load(s[half + d]));
                }
            }
        }
    }
}

// Row r is of query r % queries, which sees the columns from first + query to before last + query; the others get 0.
// `out` may be `scores`.
template <class X>
void softmax(const X *scores, X *out, long rows, long queries, long columns, long first, long last, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        std::vector<float> room(columns);
        float *values = room.data();
        for (long row = rows * part / threads; row < rows * (part + 1) / threads; row++) {
            const long query = row % queries;
            const long low = std::min(std::max(first + query, 0L), columns);
            const long high = std::max(low, std::min(last + query, columns));
            const X *from = scores + row * columns;
            X *to = out + row * columns;
            float largest = -3.4e38f, total = 0;
#pragma omp simd reduction(max : largest)
            for (long s = low; s < high; s++) largest = std::max(largest, load(from[s]));
#pragma omp simd reduction(+ : total)
            for (long s = low; s < high; s++) {
                const float value = exponential(load(from[s]) - largest);
                values[s] = value;
                total += value;
            }
            const float factor = 1.0f / total;
            for (long s = 0; s < low; s++) store(to[s], 0.0f);
#pragma omp simd
            for (long s = low; s < high; s++) store(to[s], values[s] * factor);
            for (long s = high; s < columns; s++) store(to[s], 0.0f);
        }
    }
}

// The loss of each row, log of the sum of e^logit less the label's; the logits become the gradients of
// loss + z_loss (log of that sum)^2 where `makes_errors`.
template <class X>
void cross_entropy(X *logits, const int64_t *labels, float *losses, long rows, long vocabulary, float z_loss,
                   int makes_errors, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        std::vector<float> room(vocabulary);
        float *values = room.data();
        for (long row = rows * part / threads; row < rows * (part + 1) / threads; row++) {
            X *here = logits + row * vocabulary;
            float largest = -3.4e38f, total = 0;
#pragma omp simd reduction(max : largest)
            for (long v = 0; v < vocabulary; v++) largest = std::max(largest, load(here[v]));
            for (long start = 0; start < vocabulary; start += 4096) {  // sums of sums: fewer digits are lost
                const long end = std::min(start + 4096, vocabulary);
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (long v = start; v < end; v++) {
                    const float value = exponential(load(here[v]) - largest);
                    values[v] = value;
                    sum += value;
                }
                total += sum;
            }
            const float log_total = largest + std::log(total);
            losses[row] = log_total - load(here[labels[row]]);
            if (!makes_errors) continue;
            const float factor = (1.0f + 2.0f * z_loss * log_total) / total;
            const float chosen = values[labels[row]] * factor - 1.0f;
#pragma omp simd
            for (long v = 0; v < vocabulary; v++) store(here[v], values[v] * factor);
            store(here[labels[row]], chosen);
        }
    }
}

}  // namespace

#define RMS_NORM(X, x, O, o)                                                                                           \
    extern "C" void rms_norm_##x##_##o(const X *states, const float *scale, O *out, float *inverse, long rows,         \
                                       long width, float epsilon, int threads) {                                       \
        rms_norm(states, scale, out, inverse, rows, width, epsilon, threads);                                          \
    }                                                                                                                  \
    extern "C" void rms_norm_backward_##x##_##o(const X *states, const float *scale, const float *inverse,             \
                                                const O *above, X *grad, float *grad_scale, long rows, long width,     \
                                                int threads) {                                                         \
        rms_norm_backward(states, scale, inverse, above, grad, grad_scale, rows, width, threads);                      \
    }
RMS_NORM(bf16, bf16, bf16, bf16)
RMS_NORM(bf16, bf16, float, fp32)
RMS_NORM(float, fp32, bf16, bf16)
RMS_NORM(float, fp32, float, fp32)

#define GATED(X, x, Act, act)                                                                                          \
    extern "C" void gated_##act##_##x(const X *gate, const X *up, X *out, long count, int threads) {                   \
        gated<X, Act>(gate, up, out, count, threads);                                                                  \
    }                                                                                                                  \
    extern "C" void gated_backward_##act##_##x(const X *gate, const X *up, X *grad, X *grad_up, long count,            \
                                               int threads) {                                                          \
        gated_backward<X, Act>(gate, up, grad, grad_up, count, threads);                                               \
    }
GATED(bf16, bf16, Silu, silu)
GATED(float, fp32, Silu, silu)
GATED(bf16, bf16, GeluTanh, gelu_tanh)
GATED(float, fp32, GeluTanh, gelu_tanh)

#define ROTARY(X, x, P, p, O, o)                                                                                       \
    extern "C" void rotary_##x##_##p##_##o(const X *states, const P *cosine, const P *sine, O *out, long tokens,       \
                                           long places, long heads, long width, long stride, int turns_back,           \
                                           int threads) {                                                              \
        rotary(states, cosine, sine, out, tokens, places, heads, width, stride, turns_back, threads);                  \
    }
ROTARY(bf16, bf16, bf16, bf16, bf16, bf16)
ROTARY(float, fp32, float, fp32, float, fp32)
ROTARY(bf16, bf16, float, fp32, float, fp32)
ROTARY(float, fp32, float, fp32, bf16, bf16)

#define SOFTMAX(X, x)                                                                                                  \
    extern "C" void softmax_##x(const X *scores, X *out, long rows, long queries, long columns, long first, long last, \
                                int threads) {                                                                         \
        softmax(scores, out, rows, queries, columns, first, last, threads);                                            \
    }
SOFTMAX(bf16, bf16)
SOFTMAX(float, fp32)

#define CROSS_ENTROPY(X, x)                                                                                            \
    extern "C" void cross_entropy_##x(X *logits, const int64_t *labels, float *losses, long rows, long vocabulary,     \
                                      float z_loss, int makes_errors, int threads) {                                   \
        cross_entropy(logits, labels, losses, rows, vocabulary, z_loss, makes_errors, threads);                        \
    }
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(float, fp32)
