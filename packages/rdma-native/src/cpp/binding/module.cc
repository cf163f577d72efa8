// The module: every function of native.ts, area by area, in its order.
#include "binding/support.h"

namespace {

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  weightline::binding::registerDigest(env, exports);
  weightline::binding::registerAgent(env, exports);
  weightline::binding::registerMover(env, exports);
  weightline::binding::registerListener(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(weightline_native, initialise)
