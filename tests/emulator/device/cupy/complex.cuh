#pragma once
// In place of CuPy's: its headers name the type, but there is no arithmetic with complex numbers here.
template <class T> struct complex {
  T re, im;
  complex(T re = 0, T im = 0) : re(re), im(im) {}
  T real() const { return re; }
  T imag() const { return im; }
};
template <class T> static inline T norm(const complex<T>& z) { return z.re * z.re + z.im * z.im; }
