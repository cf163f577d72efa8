#include "binding/support.h"

namespace weightline::binding {

namespace {
constexpr double kMaxSafeInteger = 9007199254740991.0;

[[noreturn]] void wrongType(const char* name, const char* wanted) {
  throw Fault(Code::kInvalidArgument, std::string(name) + " must be " + wanted).field(name).limit(wanted);
}
}  // namespace

Napi::Object toFaultObject(Napi::Env env, const Fault& fault) {
  auto object = Napi::Object::New(env);
  object.Set("code", std::string(codeName(fault.code())));
  object.Set("message", std::string(fault.what()));
  object.Set("field", fault.field());
  object.Set("value", fault.value());
  object.Set("limit", fault.limit());
  object.Set("wayOut", fault.wayOut());
  return object;
}

Napi::Error toError(Napi::Env env, const Fault& fault) {
  auto error = Napi::Error::New(env, fault.what());
  error.Set("code", Napi::String::New(env, std::string(codeName(fault.code()))));
  error.Set("field", Napi::String::New(env, fault.field()));
  error.Set("value", Napi::String::New(env, fault.value()));
  error.Set("limit", Napi::String::New(env, fault.limit()));
  error.Set("wayOut", Napi::String::New(env, fault.wayOut()));
  return error;
}

std::string stringArgument(const Napi::Value& value, const char* name) {
  if (!value.IsString()) wrongType(name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

uint64_t uint64Argument(const Napi::Value& value, const char* name) {
  if (value.IsBigInt()) {
    bool lossless = false;
    const uint64_t number = value.As<Napi::BigInt>().Uint64Value(&lossless);
    if (!lossless) wrongType(name, "between 0 and 2^64 - 1");
    return number;
  }
  if (!value.IsNumber()) wrongType(name, "a bigint");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= 0 && number <= kMaxSafeInteger) || number != static_cast<double>(static_cast<uint64_t>(number))) {
    wrongType(name, "a whole number between 0 and 2^53 - 1");
  }
  return static_cast<uint64_t>(number);
}

int64_t int64Argument(const Napi::Value& value, const char* name) {
  if (!value.IsBigInt()) wrongType(name, "a bigint");
  bool lossless = false;
  const int64_t number = value.As<Napi::BigInt>().Int64Value(&lossless);
  if (!lossless) wrongType(name, "between -2^63 and 2^63 - 1");
  return number;
}

uint32_t uint32Argument(const Napi::Value& value, const char* name) {
  const uint64_t number = uint64Argument(value, name);
  if (number > UINT32_MAX) wrongType(name, "between 0 and 2^32 - 1");
  return static_cast<uint32_t>(number);
}

bool boolArgument(const Napi::Value& value, const char* name) {
  if (!value.IsBoolean()) wrongType(name, "true or false");
  return value.As<Napi::Boolean>().Value();
}

std::vector<uint8_t> bytesArgument(const Napi::Value& value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) wrongType(name, "a Uint8Array");
  auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.Data() + array.ByteLength()};
}

Napi::Value field(const Napi::Object& object, const char* name) {
  if (!object.Has(name)) wrongType(name, "given");
  return object.Get(name);
}

Napi::Buffer<uint8_t> toBuffer(Napi::Env env, const uint8_t* data, size_t bytes) {
  return Napi::Buffer<uint8_t>::Copy(env, data, bytes);
}

}  // namespace weightline::binding
