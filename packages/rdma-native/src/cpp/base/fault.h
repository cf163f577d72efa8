// The one kind of error that the addon throws: what NativeFault of native.ts carries over to TypeScript.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace weightline {

enum class Code : uint8_t {
  kNotFound,
  kUnavailable,
  kDeadlineExceeded,
  kRefused,
  kInvalidArgument,
  kPermissionDenied,
  kResourceExhausted,
  kCorrupt,
  kInUse,
  kAlreadyExists,
  kCancelled,
  kInternal,
  kClosed,
};

// "NotFound", "Unavailable", ...: the names of native.ts.
std::string_view codeName(Code code);

// An error with the field, the value, the limit and the way out in the caller's own words. `what()` is a whole sentence.
class Fault : public std::runtime_error {
 public:
  Fault(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}

  Fault& field(std::string v) { field_ = std::move(v); return *this; }
  Fault& value(std::string v) { value_ = std::move(v); return *this; }
  Fault& limit(std::string v) { limit_ = std::move(v); return *this; }
  Fault& wayOut(std::string v) { wayOut_ = std::move(v); return *this; }

  Code code() const { return code_; }
  const std::string& field() const { return field_; }
  const std::string& value() const { return value_; }
  const std::string& limit() const { return limit_; }
  const std::string& wayOut() const { return wayOut_; }

 private:
  Code code_;
  std::string field_, value_, limit_, wayOut_;
};

// A fault for a failed system call: "<what>: <strerror>". ENOSPC becomes ResourceExhausted, ENOENT NotFound,
// EACCES and EPERM PermissionDenied, all else Internal.
Fault systemFault(int error, const std::string& what);

}  // namespace weightline
