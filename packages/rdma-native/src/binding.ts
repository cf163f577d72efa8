import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type { NativeCode, NativeFault, NativeModule } from "./native.ts";

/** An error of the addon. `message` is a whole sentence; the other fields as in {@link NativeFault}, empty when they say nothing. */
export class NativeError extends Error implements NativeFault {
  override readonly name = "NativeError";
  readonly code: NativeCode;
  readonly field: string;
  readonly value: string;
  readonly limit: string;
  readonly wayOut: string;

  constructor(fault: NativeFault, options?: ErrorOptions) {
    super(fault.message, options);
    this.code = fault.code;
    this.field = fault.field;
    this.value = fault.value;
    this.limit = fault.limit;
    this.wayOut = fault.wayOut;
  }
}

/** Folder of the build to load; the sanitizer tier names another one. */
const BUILD_FOLDER = process.env["WEIGHTLINE_NATIVE_BUILD"] ?? "build";

function isFault(error: unknown): error is Error & NativeFault {
  return error instanceof Error && "wayOut" in error && "code" in error;
}

function toNativeError(error: unknown): unknown {
  return isFault(error) ? new NativeError(error, { cause: error }) : error;
}

function load(): NativeModule {
  const path = fileURLToPath(new URL(`../${BUILD_FOLDER}/Release/weightline_native.node`, import.meta.url));
  try {
    return createRequire(import.meta.url)(path) as NativeModule;
  } catch (cause) {
    throw new Error(
      `the native addon ${path} cannot be loaded: ${(cause as Error).message}\nway out: run \`./mx setup\`, which builds it; it needs a C++20 compiler`,
      { cause },
    );
  }
}

/** Every native function, with its errors, thrown or rejected, as {@link NativeError}. */
function wrap(module: NativeModule): NativeModule {
  const wrapped: Record<string, unknown> = {};
  for (const [name, callee] of Object.entries(module)) {
    wrapped[name] = (...parameters: unknown[]) => {
      try {
        const result: unknown = (callee as (...all: unknown[]) => unknown)(...parameters);
        return result instanceof Promise
          ? result.catch((error: unknown) => Promise.reject(toNativeError(error)))
          : result;
      } catch (error) {
        throw toNativeError(error);
      }
    };
  }
  return wrapped as unknown as NativeModule;
}

/** The addon. */
export const native: NativeModule = wrap(load());
