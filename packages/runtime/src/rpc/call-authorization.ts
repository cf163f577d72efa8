import * as grpc from "@grpc/grpc-js";
import type { Authorize, Caller } from "../security/access.ts";
import type { ConnectionPeer } from "../security/secure-intake.ts";

/** What a refused call gets; made where other failures are made, so that it is logged and counted like them. */
export type Refuse = (path: string, error: unknown, startedMs: number) => grpc.StatusObject;

const AUTHORIZATION = "authorization";

/** Callers that were let in, by the metadata object that grpc-js hands on to their handler. */
const callers = new WeakMap<grpc.Metadata, Caller>();

/** Who the call with this metadata is from; undefined while security is off. */
export function callerOf(metadata: grpc.Metadata): Caller | undefined {
  return callers.get(metadata);
}

/**
 * Asks `authorize` before any message of a call is read, so that a stranger cannot make the server hold its bytes. What
 * handlers see of the metadata has no token in it.
 */
export function authorizationInterceptor(
  peer: ConnectionPeer,
  authorize: Authorize,
  refuse: Refuse,
): grpc.ServerInterceptor {
  return ({ path }, call) => {
    const startedMs = performance.now();
    return new grpc.ServerInterceptingCall(call, {
      start(next) {
        next({
          onReceiveMetadata(metadata, go) {
            const authorization = metadata.get(AUTHORIZATION).map(String);
            metadata.remove(AUTHORIZATION);
            const admit = (caller: Caller) => {
              callers.set(metadata, caller);
              go(metadata);
            };
            const turnAway = (error: unknown) => call.sendStatus(refuse(path, error, startedMs));
            try {
              const caller = authorize({ method: path.slice(1), authorization, peer });
              if (caller instanceof Promise) {
                caller.then(admit, turnAway);
              } else {
                admit(caller);
              }
            } catch (error) {
              turnAway(error);
            }
          },
        });
      },
    });
  };
}
