// What every binding file shares: faults as JavaScript errors, checked reading of arguments.
#pragma once

#include <napi.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fault.h"

namespace weightline::binding {

// A JavaScript Error with `message`, `code`, `field`, `value`, `limit`, `wayOut` (NativeFault of native.ts).
Napi::Error toError(Napi::Env env, const Fault& fault);
// The plain NativeFault object.
Napi::Object toFaultObject(Napi::Env env, const Fault& fault);

// Runs `body` and turns a Fault, or any std::exception (as Internal), into a thrown JavaScript error.
template <typename Body>
auto guarded(Napi::Env env, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const Fault& fault) {
    throw toError(env, fault);
  } catch (const std::exception& e) {
    throw toError(env, Fault(Code::kInternal, e.what()));
  }
}

// Checked readers: throw InvalidArgument naming the argument.
std::string stringArgument(const Napi::Value& value, const char* name);
uint64_t uint64Argument(const Napi::Value& value, const char* name);  // bigint, or a safe integer
int64_t int64Argument(const Napi::Value& value, const char* name);
uint32_t uint32Argument(const Napi::Value& value, const char* name);
bool boolArgument(const Napi::Value& value, const char* name);
std::vector<uint8_t> bytesArgument(const Napi::Value& value, const char* name);  // copies a Uint8Array
Napi::Value field(const Napi::Object& object, const char* name);  // throws when it is absent

Napi::Buffer<uint8_t> toBuffer(Napi::Env env, const uint8_t* data, size_t bytes);

// A handle: an External whose pointee knows whether it is closed. `T` must have `static constexpr const char* kName`.
template <typename T>
std::shared_ptr<T>& handleArgument(const Napi::Value& value) {
  if (!value.IsExternal()) throw Fault(Code::kInvalidArgument, std::string("a ") + T::kName + " handle is needed here");
  static const napi_type_tag kTag = T::kTag;
  bool same = false;
  napi_check_object_type_tag(value.Env(), value, &kTag, &same);
  if (!same) throw Fault(Code::kInvalidArgument, std::string("this is not a ") + T::kName + " handle");
  auto* holder = value.As<Napi::External<std::shared_ptr<T>>>().Data();
  return *holder;
}

// The same, but `Closed` when the handle was closed.
template <typename T>
std::shared_ptr<T> openHandle(const Napi::Value& value) {
  auto& held = handleArgument<T>(value);
  if (!held) throw Fault(Code::kClosed, std::string("this ") + T::kName + " is closed");
  return held;
}

template <typename T>
Napi::Value makeHandle(Napi::Env env, std::shared_ptr<T> object) {
  auto* holder = new std::shared_ptr<T>(std::move(object));
  auto external = Napi::External<std::shared_ptr<T>>::New(
      env, holder, [](Napi::BasicEnv, std::shared_ptr<T>* data) { delete data; });
  static const napi_type_tag kTag = T::kTag;
  napi_type_tag_object(env, external, &kTag);
  return external;
}

// Runs `work` on a native thread (libuv's pool) and settles a promise on the JavaScript thread: `convert` makes the value.
template <typename Result>
class PromiseWork : public Napi::AsyncWorker {
 public:
  using Work = std::function<Result()>;
  using Convert = std::function<Napi::Value(Napi::Env, Result&)>;

  static Napi::Value start(Napi::Env env, Work work, Convert convert) {
    auto* worker = new PromiseWork(env, std::move(work), std::move(convert));
    auto promise = worker->deferred_.Promise();
    worker->Queue();
    return promise;
  }

 protected:
  void Execute() override {
    try {
      result_ = std::make_unique<Result>(work_());
    } catch (const Fault& fault) {
      fault_ = std::make_unique<Fault>(fault);
    } catch (const std::exception& e) {
      fault_ = std::make_unique<Fault>(Code::kInternal, e.what());
    }
  }
  void OnOK() override {
    Napi::HandleScope scope(Env());
    if (fault_) {
      deferred_.Reject(toError(Env(), *fault_).Value());
    } else {
      deferred_.Resolve(convert_(Env(), *result_));
    }
  }

 private:
  PromiseWork(Napi::Env env, Work work, Convert convert)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), work_(std::move(work)), convert_(std::move(convert)) {}
  Napi::Promise::Deferred deferred_;
  Work work_;
  Convert convert_;
  std::unique_ptr<Result> result_;
  std::unique_ptr<Fault> fault_;
};

// Each area adds its functions to the module.
void registerDigest(Napi::Env env, Napi::Object exports);
void registerAgent(Napi::Env env, Napi::Object exports);
void registerMover(Napi::Env env, Napi::Object exports);
void registerListener(Napi::Env env, Napi::Object exports);

}  // namespace weightline::binding
