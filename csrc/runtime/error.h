// The one exception of the runtime, and the check that ops use.
//
// A message reads `op: argument: expected X, got Y`. The boxed entry (boxing.h) turns an Error into a Python
// RuntimeError once everything that the op held is released.
#pragma once

#include <stdexcept>
#include <string>

namespace sglk {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// snprintf into a std::string.
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace sglk

// SGLK_CHECK(condition, pattern, ...): throws Error with the formatted message unless condition holds.
#define SGLK_CHECK(condition, ...)                      \
  do {                                                  \
    if (__builtin_expect(!(condition), 0)) {            \
      throw ::sglk::Error(::sglk::format(__VA_ARGS__)); \
    }                                                   \
  } while (false)
