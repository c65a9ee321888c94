// cuBLAS: matrix products by three loops, with sums in double so that their order does not matter.
#include "emulator.h"
#include <cmath>
#include <type_traits>
#include <vector>

using namespace emulator;

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { REAL_32F = 0, REAL_64F = 1 };

static void* stream;
static int math_mode, pointer_mode;

EXPORTED int cublasCreate_v2(void** handle) { return *handle = (void*)0x20, SUCCESS; }
EXPORTED int cublasDestroy_v2(void*) { return SUCCESS; }
EXPORTED int cublasGetVersion_v2(void*, int* version) { return *version = 120900, SUCCESS; }
EXPORTED int cublasSetStream_v2(void*, void* value) { return stream = value, SUCCESS; }
EXPORTED int cublasGetStream_v2(void*, void** value) { return *value = stream, SUCCESS; }
EXPORTED int cublasSetMathMode(void*, int mode) { return math_mode = mode, SUCCESS; }
EXPORTED int cublasGetMathMode(void*, int* mode) { return *mode = math_mode, SUCCESS; }
EXPORTED int cublasSetPointerMode_v2(void*, int mode) { return pointer_mode = mode, SUCCESS; }
EXPORTED int cublasGetPointerMode_v2(void*, int* mode) { return *mode = pointer_mode, SUCCESS; }

// C = alpha op(A) op(B) + beta C; column-major, C (m, n). With beta 0 C is not read, so that it may hold NaN.
template <class T>
static void multiply(bool ta, bool tb, int m, int n, int k, T alpha, const T* A, int lda, const T* B, int ldb, T beta, T* C,
                     int ldc) {
  std::vector<double> sums(m);
  for (int j = 0; j < n; j++) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int p = 0; p < k; p++) {
      double b = tb ? B[j + (long)p * ldb] : B[p + (long)j * ldb];
      if (ta)
        for (int i = 0; i < m; i++) sums[i] += A[p + (long)i * lda] * b;
      else
        for (int i = 0; i < m; i++) sums[i] += A[i + (long)p * lda] * b;
    }
    for (int i = 0; i < m; i++) {
      T& c = C[i + (long)j * ldc];
      c = T(alpha * sums[i] + (beta == 0 ? 0.0 : double(beta) * c));
    }
  }
}

template <class T>
static int gemm(int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int lda, const void* B, int ldb,
                const void* beta, void* C, int ldc, int batches = 1, long long sa = 0, long long sb = 0, long long sc = 0) {
  if (pointer_mode) {
    complain("a matrix product whose factors alpha and beta are on the device is not emulated");
    return NOT_SUPPORTED;
  }
  if (!on_device(A) || !on_device(B) || !on_device(C)) {
    complain("a matrix product was given a host pointer");
    return INVALID_VALUE;
  }
  count(PRODUCT, std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) +
                     (batches > 1 ? " times " + std::to_string(batches) : ""));
  T a = *(const T*)alpha, b = *(const T*)beta;
  submit([=] {
    for (int i = 0; i < batches; i++)
      multiply<T>(ta, tb, m, n, k, a, (const T*)A + i * sa, lda, (const T*)B + i * sb, ldb, b, (T*)C + i * sc, ldc);
  });
  return SUCCESS;
}

EXPORTED int cublasSgemm_v2(void*, int ta, int tb, int m, int n, int k, const float* alpha, const float* A, int lda,
                            const float* B, int ldb, const float* beta, float* C, int ldc) {
  return gemm<float>(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
}

EXPORTED int cublasDgemm_v2(void*, int ta, int tb, int m, int n, int k, const double* alpha, const double* A, int lda,
                            const double* B, int ldb, const double* beta, double* C, int ldc) {
  return gemm<double>(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
}

// Float and double alone: half precision and mixtures are refused.
static int gemm_ex(int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int type_a, int lda,
                   const void* B, int type_b, int ldb, const void* beta, void* C, int type_c, int ldc, int batches,
                   long long sa, long long sb, long long sc) {
  bool wide = type_a == REAL_64F;
  if (type_a != type_b || type_a != type_c || (type_a != REAL_32F && !wide)) {
    complain("a matrix product of mixed or half precision is not emulated");
    return NOT_SUPPORTED;
  }
  return (wide ? gemm<double> : gemm<float>)(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, batches, sa, sb, sc);
}

EXPORTED int cublasGemmEx(void*, int ta, int tb, int m, int n, int k, const void* alpha, const void* A, int type_a, int lda,
                          const void* B, int type_b, int ldb, const void* beta, void* C, int type_c, int ldc, int, int) {
  return gemm_ex(ta, tb, m, n, k, alpha, A, type_a, lda, B, type_b, ldb, beta, C, type_c, ldc, 1, 0, 0, 0);
}

EXPORTED int cublasGemmStridedBatchedEx(void*, int ta, int tb, int m, int n, int k, const void* alpha, const void* A,
                                        int type_a, int lda, long long sa, const void* B, int type_b, int ldb, long long sb,
                                        const void* beta, void* C, int type_c, int ldc, long long sc, int batches, int, int) {
  return gemm_ex(ta, tb, m, n, k, alpha, A, type_a, lda, B, type_b, ldb, beta, C, type_c, ldc, batches, sa, sb, sc);
}

// Batches by arrays of pointers, which lie on the device as well and are read when the product runs.
template <class T>
static int gemm_batched(int ta, int tb, int m, int n, int k, const T* alpha, const T* const* A, int lda,
                        const T* const* B, int ldb, const T* beta, T* const* C, int ldc, int batches) {
  if (pointer_mode || !on_device(A) || !on_device(B) || !on_device(C)) {
    complain("a batched matrix product with factors on the device or with pointers on the host");
    return INVALID_VALUE;
  }
  count(PRODUCT, std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) + " times " + std::to_string(batches));
  T a = *alpha, b = *beta;
  submit([=] {
    for (int i = 0; i < batches; i++) multiply<T>(ta, tb, m, n, k, a, A[i], lda, B[i], ldb, b, C[i], ldc);
  });
  return SUCCESS;
}

EXPORTED int cublasSgemmBatched(void*, int ta, int tb, int m, int n, int k, const float* alpha, const float* const* A,
                                int lda, const float* const* B, int ldb, const float* beta, float* const* C, int ldc,
                                int batches) {
  return gemm_batched(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, batches);
}

EXPORTED int cublasDgemmBatched(void*, int ta, int tb, int m, int n, int k, const double* alpha, const double* const* A,
                                int lda, const double* const* B, int ldb, const double* beta, double* const* C, int ldc,
                                int batches) {
  return gemm_batched(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, batches);
}
