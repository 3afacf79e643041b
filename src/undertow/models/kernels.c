/* What stands between a model's products, each in one pass over memory: norms, gated
 * activations, rotations, masked softmaxes, log-probabilities, low-rank adapters, and their
 * gradients.
 *
 * Numbers are bfloat16 in memory and float32 in registers, rounded where PyTorch rounds
 * them on the way forward; a gradient is rounded once. Rows lie one after another unless
 * strides are given. Compiled and checked by kernels.py; nothing here allocates.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef uint16_t bf16;

/* Fewer numbers than this are not worth a second thread. */
#define ALONE 16384
#define CHUNK 4096
/* Rows that an adapter takes at once, and columns. */
#define FEW 16
#define TILE 768

static inline float wide(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

/* To the nearest, ties to even; a NaN stays one. */
static inline bf16 narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  return x != x ? (bf16)0x7fc0 : (bf16)rounded;
}

static inline float rounded(float x) { return wide(narrow(x)); }

/* e^x to two units in the last place of a float; Cephes' polynomial. A NaN stays one. */
static inline float exponential(float x) {
  float c = x < -87.0f ? -87.0f : x;
  c = c > 88.0f ? 88.0f : c;
  float n = rintf(c * 1.44269504f);
  float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)n + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return p * scale;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* ── x / sqrt(mean x² + eps) · (more + w) with more 0 or 1 ─────────────────────────────────────── */

void norm_forward(const bf16 *x, const bf16 *w, bf16 *y, float *inverse, int64_t rows,
                  int64_t n, float eps, float more) {
#pragma omp parallel for schedule(static) if (rows * n > ALONE)
  for (int64_t i = 0; i < rows; i++) {
    const bf16 *a = x + i * n;
    bf16 *b = y + i * n;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += wide(a[j]) * wide(a[j]);
    float s = 1.0f / sqrtf(sum / n + eps);
    inverse[i] = s;
    if (more != 0) {
#pragma omp simd
      for (int64_t j = 0; j < n; j++)
        b[j] = narrow(wide(a[j]) * s * (more + wide(w[j])));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; j++) b[j] = narrow(rounded(wide(a[j]) * s) * wide(w[j]));
    }
  }
}

void norm_backward(const bf16 *g, const bf16 *x, const bf16 *w, const float *inverse,
                   bf16 *d, int64_t rows, int64_t n, float more) {
#pragma omp parallel for schedule(static) if (rows * n > ALONE)
  for (int64_t i = 0; i < rows; i++) {
    const bf16 *a = x + i * n, *u = g + i * n;
    bf16 *b = d + i * n;
    float s = inverse[i], dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < n; j++) dot += wide(u[j]) * (more + wide(w[j])) * wide(a[j]);
    float k = dot * s * s * s / n;
#pragma omp simd
    for (int64_t j = 0; j < n; j++)
      b[j] = narrow(s * wide(u[j]) * (more + wide(w[j])) - k * wide(a[j]));
  }
}

/* ── activation(gate) · up: SiLU, or GELU by tanh ──────────────────────────────────── */

#define GELU_A 0.7978845608f /* √(2/π) */
#define GELU_B 0.044715f

static inline float activated(float a, int gelu) {
  float inner = gelu ? 2.0f * GELU_A * (a + GELU_B * a * a * a) : a;
  return a * sigmoid(inner); /* (1 + tanh z) / 2 is the sigmoid of 2z */
}

static inline float slope(float a, int gelu) {
  float inner = gelu ? 2.0f * GELU_A * (a + GELU_B * a * a * a) : a;
  float inward = gelu ? 2.0f * GELU_A * (1.0f + 3.0f * GELU_B * a * a) : 1.0f;
  float s = sigmoid(inner);
  return s + a * s * (1.0f - s) * inward;
}

static void gate_forward(const bf16 *restrict gate, const bf16 *restrict up,
                         bf16 *restrict y, int64_t start, int64_t end, int gelu) {
#pragma omp simd
  for (int64_t j = start; j < end; j++)
    y[j] = narrow(rounded(activated(wide(gate[j]), gelu)) * wide(up[j]));
}

static void gate_backward(const bf16 *restrict g, const bf16 *restrict gate,
                          const bf16 *restrict up, bf16 *restrict to_gate,
                          bf16 *restrict to_up, int64_t start, int64_t end, int gelu) {
#pragma omp simd
  for (int64_t j = start; j < end; j++) {
    float a = wide(gate[j]), u = wide(g[j]);
    to_up[j] = narrow(u * activated(a, gelu));
    to_gate[j] = narrow(u * wide(up[j]) * slope(a, gelu));
  }
}

void gated_forward(const bf16 *gate, const bf16 *up, bf16 *y, int64_t count, int gelu) {
#pragma omp parallel for schedule(static) if (count > ALONE)
  for (int64_t start = 0; start < count; start += CHUNK) {
    int64_t end = start + CHUNK < count ? start + CHUNK : count;
    if (gelu)
      gate_forward(gate, up, y, start, end, 1);
    else
      gate_forward(gate, up, y, start, end, 0);
  }
}

void gated_backward(const bf16 *g, const bf16 *gate, const bf16 *up, bf16 *to_gate,
                    bf16 *to_up, int64_t count, int gelu) {
#pragma omp parallel for schedule(static) if (count > ALONE)
  for (int64_t start = 0; start < count; start += CHUNK) {
    int64_t end = start + CHUNK < count ? start + CHUNK : count;
    if (gelu)
      gate_backward(g, gate, up, to_gate, to_up, start, end, 1);
    else
      gate_backward(g, gate, up, to_gate, to_up, start, end, 0);
  }
}

/* ── x·cos + (−x₂, x₁)·sin of [row, head, token, width], and its transpose ─────────── */

static void turned(const bf16 *restrict a, const bf16 *restrict c, const bf16 *restrict s,
                   bf16 *restrict o, int64_t half) {
#pragma omp simd
  for (int64_t m = 0; m < half; m++) {
    float p = wide(a[m]), q = wide(a[m + half]);
    o[m] = narrow(rounded(p * wide(c[m])) - rounded(q * wide(s[m])));
    o[m + half] = narrow(rounded(q * wide(c[m + half])) + rounded(p * wide(s[m + half])));
  }
}

static void turned_back(const bf16 *restrict a, const bf16 *restrict c,
                        const bf16 *restrict s, bf16 *restrict o, int64_t half) {
#pragma omp simd
  for (int64_t m = 0; m < half; m++) {
    float p = wide(a[m]), q = wide(a[m + half]);
    o[m] = narrow(p * wide(c[m]) + q * wide(s[m + half]));
    o[m + half] = narrow(q * wide(c[m + half]) - p * wide(s[m]));
  }
}

/* Strides of rows, heads and tokens; `angles` is that of cos and sin from row to row. */
void rotate(const bf16 *x, const bf16 *cosine, const bf16 *sine, bf16 *y,
            const int64_t *shape, const int64_t *from, const int64_t *to, int64_t angles,
            int back) {
  int64_t rows = shape[0], heads = shape[1], tokens = shape[2], width = shape[3];
#pragma omp parallel for collapse(2) schedule(static) \
    if (rows * heads * tokens * width > ALONE)
  for (int64_t i = 0; i < rows; i++)
    for (int64_t t = 0; t < tokens; t++) {
      const bf16 *c = cosine + i * angles + t * width, *s = sine + i * angles + t * width;
      for (int64_t h = 0; h < heads; h++) {
        const bf16 *a = x + i * from[0] + h * from[1] + t * from[2];
        bf16 *o = y + i * to[0] + h * to[1] + t * to[2];
        if (back)
          turned_back(a, c, s, o, width / 2);
        else
          turned(a, c, s, o, width / 2);
      }
    }
}

/* ── softmax(scale · scores) of [row, head, query, token] over what is seen ────────── */

/* A query sees the tokens its mask says (mask [row, query, token]) or, without a mask,
 * the first `first + query + 1`. Who sees nothing looks at all alike, as where every
 * score is the lowest number. */
void softmax_forward(const bf16 *x, bf16 *y, const uint8_t *mask, const int64_t *shape,
                     const int64_t *strides, int64_t first, float scale) {
  int64_t rows = shape[0], heads = shape[1], queries = shape[2], tokens = shape[3];
#pragma omp parallel for collapse(2) schedule(static) \
    if (rows * heads * queries * tokens > ALONE)
  for (int64_t i = 0; i < rows; i++)
    for (int64_t h = 0; h < heads * queries; h++) {
      int64_t q = h % queries;
      const bf16 *a = x + (i * heads * queries + h) * tokens;
      bf16 *b = y + (i * heads * queries + h) * tokens;
      const uint8_t *seen = mask ? mask + i * strides[0] + q * strides[1] : 0;
      int64_t end = mask ? tokens : first + q + 1;
      float most = -INFINITY, sum = 0;
      int any = mask == 0;
      float kept[tokens];
      if (seen) {
#pragma omp simd reduction(| : any)
        for (int64_t j = 0; j < end; j++) {
          kept[j] = seen[j] ? scale * wide(a[j]) : -INFINITY;
          any |= seen[j];
        }
      } else {
#pragma omp simd
        for (int64_t j = 0; j < end; j++) kept[j] = scale * wide(a[j]);
      }
      if (!any) {
        for (int64_t j = 0; j < tokens; j++) b[j] = narrow(1.0f / tokens);
        continue;
      }
#pragma omp simd reduction(max : most)
      for (int64_t j = 0; j < end; j++) most = kept[j] > most ? kept[j] : most;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < end; j++) {
        kept[j] = kept[j] == -INFINITY ? 0.0f : exponential(kept[j] - most);
        sum += kept[j];
      }
      float share = 1.0f / sum;
#pragma omp simd
      for (int64_t j = 0; j < end; j++) b[j] = narrow(kept[j] * share);
      for (int64_t j = end; j < tokens; j++) b[j] = 0;
    }
}

void softmax_backward(const bf16 *g, const bf16 *y, bf16 *d, int64_t rows, int64_t tokens,
                      float scale) {
#pragma omp parallel for schedule(static) if (rows * tokens > ALONE)
  for (int64_t i = 0; i < rows; i++) {
    const bf16 *u = g + i * tokens, *p = y + i * tokens;
    bf16 *o = d + i * tokens;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < tokens; j++) dot += wide(u[j]) * wide(p[j]);
#pragma omp simd
    for (int64_t j = 0; j < tokens; j++) o[j] = narrow(scale * wide(p[j]) * (wide(u[j]) - dot));
  }
}

/* ── log softmax(scale · logits) at each row's target, and its gradient ────────────── */

/* With `derive` the logits are overwritten by the gradient of their row's result. */
void logprobs_forward(bf16 *x, const int64_t *targets, float *nats, int64_t rows,
                      int64_t n, float scale, int derive) {
#pragma omp parallel for schedule(static) if (rows * n > ALONE)
  for (int64_t i = 0; i < rows; i++) {
    bf16 *a = x + i * n;
    int64_t target = targets[i];
    float most = -INFINITY, sum = 0, own = scale * wide(a[target]);
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++) most = scale * wide(a[j]) > most ? scale * wide(a[j]) : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += exponential(scale * wide(a[j]) - most);
    nats[i] = own - most - logf(sum);
    if (!derive) continue;
    float share = scale / sum;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) a[j] = narrow(-share * exponential(scale * wide(a[j]) - most));
    a[target] = narrow(scale - share * exponential(own - most));
  }
}

/* ── out + low·Bᵀ with low = scale · x·Aᵀ, and its gradients ───────────────────────── */

/* Sixteen numbers side by side; widths are multiples of 16, ranks of 8. */
typedef float v16 __attribute__((vector_size(64)));
typedef uint32_t u16v __attribute__((vector_size(64)));
typedef bf16 h16 __attribute__((vector_size(32)));

static inline v16 many(const float *p) {
  v16 y;
  memcpy(&y, p, 64);
  return y;
}

static inline void keep(float *p, v16 x) { memcpy(p, &x, 64); }

#ifdef __AVX512F__ /* of which the compiler makes three steps where one does */
static inline v16 many_wide(const bf16 *p) {
  __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
  return (v16)_mm512_slli_epi32(bits, 16);
}
#else
static inline v16 many_wide(const bf16 *p) {
  h16 h;
  memcpy(&h, p, 32);
  u16v bits = __builtin_convertvector(h, u16v) << 16;
  v16 y;
  memcpy(&y, &bits, 64);
  return y;
}
#endif

#ifdef __AVX512BF16__
static inline void keep_narrow(bf16 *p, v16 x) {
  _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
}
#else
static inline void keep_narrow(bf16 *p, v16 x) {
  u16v bits, lost = (u16v)(x != x);
  memcpy(&bits, &x, 64);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  h16 h = __builtin_convertvector((bits & ~lost) | (lost & 0x7fc0u), h16);
  memcpy(p, &h, 32);
}
#endif

/* The totals of eight times sixteen numbers, in the first eight places. */
static inline v16 totals(const v16 *x) {
  const u16v first = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
             second = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27},
             third = {0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29},
             even = {0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0};
  v16 two[4], four[2], y;
  for (int i = 0; i < 4; i++)
    two[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], first) +
             __builtin_shuffle(x[2 * i], x[2 * i + 1], first + 8);
  for (int i = 0; i < 2; i++)
    four[i] = __builtin_shuffle(two[2 * i], two[2 * i + 1], second) +
              __builtin_shuffle(two[2 * i], two[2 * i + 1], second + 4);
  y = __builtin_shuffle(four[0], four[1], third) +
      __builtin_shuffle(four[0], four[1], third + 2);
  return __builtin_shuffle(y, even) + __builtin_shuffle(y, even + 1);
}

/* Lets numbers come nearer that will be needed soon. */
static inline void fetch(const bf16 *p, int64_t count) {
  for (int64_t j = 0; j < count; j += 32) __builtin_prefetch(p + j, 0, 2);
}

/* low[t, k] = scale · Σ x[t, j] · a[k, j] of a few rows, tile by tile: a's stays at hand */
static inline void lowered(const bf16 *restrict x, const float *restrict a,
                           float *restrict low, int64_t rows, int64_t n, int64_t rank,
                           float scale) {
  for (int64_t k = 0; k < rank; k += 8) {
    v16 kept[FEW][8] = {{{0}}};
    for (int64_t tile = 0; tile < n; tile += TILE)
      for (int64_t t = 0; t < rows; t++) {
        int64_t end = tile + TILE < n ? tile + TILE : n;
        v16 sums[8];
        memcpy(sums, kept[t], sizeof sums);
        for (int64_t j = tile; j < end; j += 16) {
          v16 own = many_wide(x + t * n + j);
          for (int i = 0; i < 8; i++) sums[i] += own * many(a + (k + i) * n + j);
        }
        memcpy(kept[t], sums, sizeof sums);
      }
    for (int64_t t = 0; t < rows; t++) {
      v16 all = scale * totals(kept[t]);
      memcpy(low + t * rank + k, &all, 32);
    }
  }
}

/* y[t, j] += Σ low[t, k] · b[k, j] of a few rows */
static inline void raised(bf16 *restrict y, const float *restrict b,
                          const float *restrict low, int64_t rows, int64_t n,
                          int64_t rank) {
  float kept[TILE];
  for (int64_t tile = 0; tile < n; tile += TILE)
    for (int64_t t = 0; t < rows; t++) {
      int64_t wide = tile + TILE < n ? TILE : n - tile;
      bf16 *own = y + t * n + tile;
      for (int64_t j = 0; j < wide; j += 16) keep(kept + j, many_wide(own + j));
      for (int64_t k = 0; k < rank; k += 8) {
        float part[8];
        memcpy(part, low + t * rank + k, sizeof part);
        for (int64_t j = 0; j < wide; j += 16) {
          v16 sum = many(kept + j);
          for (int i = 0; i < 8; i++) sum += part[i] * many(b + (k + i) * n + tile + j);
          keep(kept + j, sum);
        }
      }
      for (int64_t j = 0; j < wide; j += 16) keep_narrow(own + j, many(kept + j));
    }
}

/* d[k, j] += Σ low[t, k] · x[t, j] over a few rows; d's rows lie `step` apart */
static inline void gathered(const bf16 *restrict x, const float *restrict low,
                            float *restrict d, int64_t rows, int64_t n, int64_t rank,
                            int64_t step) {
  for (int64_t k = 0; k < rank; k += 8)
    for (int64_t j = 0; j < n; j += 16) {
      v16 sums[8];
      for (int i = 0; i < 8; i++) sums[i] = many(d + (k + i) * step + j);
      for (int64_t t = 0; t < rows; t++) {
        v16 own = many_wide(x + t * n + j);
        for (int i = 0; i < 8; i++) sums[i] += low[t * rank + k + i] * own;
      }
      for (int i = 0; i < 8; i++) keep(d + (k + i) * step + j, sums[i]);
    }
}

/* x [row, n], a [rank, n], b [rank, m]; y [row, m] is added to, low [row, rank] kept. */
void adapter_forward(const bf16 *x, const float *a, const float *b, bf16 *y, float *low,
                     int64_t rows, int64_t n, int64_t m, int64_t rank, float scale) {
#pragma omp parallel for schedule(static) if (rows * (n + m) > ALONE)
  for (int64_t t = 0; t < rows; t += FEW) {
    int64_t few = rows - t < FEW ? rows - t : FEW;
    fetch(y + t * m, few * m);
    fetch(x + (t + few) * n, few * n);
    lowered(x + t * n, a, low + t * rank, few, n, rank, scale);
    raised(y + t * m, b, low + t * rank, few, m, rank);
  }
}

/* From g [row, m]: `d` [row, n], if there is one, is added to; `sums` [part, rank, n + m]
 * gets the gradients of a and b, of an equal share of the rows in each part. */
void adapter_backward(const bf16 *g, const bf16 *x, const float *low, const float *a,
                      const float *b, bf16 *d, float *sums, int64_t rows, int64_t n,
                      int64_t m, int64_t rank, int64_t parts, float scale) {
#pragma omp parallel for schedule(static) if (rows * (n + m) > ALONE)
  for (int64_t p = 0; p < parts; p++) {
    float *to_a = sums + p * rank * (n + m), *to_b = to_a + n;
    float back[FEW * rank];
    int64_t end = rows * (p + 1) / parts;
    for (int64_t t = rows * p / parts; t < end; t += FEW) {
      int64_t few = end - t < FEW ? end - t : FEW;
      if (d) fetch(d + t * n, few * n);
      fetch(x + t * n, few * n);
      fetch(g + (t + few) * m, few * m);
      lowered(g + t * m, b, back, few, m, rank, scale);
      gathered(g + t * m, low + t * rank, to_b, few, m, rank, n + m);
      if (d) raised(d + t * n, a, back, few, n, rank);
      gathered(x + t * n, back, to_a, few, n, rank, n + m);
    }
  }
}
