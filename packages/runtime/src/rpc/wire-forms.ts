import type { DescMessage, DescMethod, DescService } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import type { ServiceRoute } from "./service-route.ts";

/** A reply whose bytes are known already: sent as they are. */
export class EncodedMessage {
  readonly bytes: Uint8Array;
  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }
}

/** Messages that stand for a method's own; each must be the same on the wire as the one it replaces. */
export interface WireForm {
  input?: DescMessage;
  output?: DescMessage;
}

/**
 * A route under the service's own name and paths, with other message types for the methods that `forms` names (by their
 * local names): so a server can leave parts of a message undecoded that it only passes on.
 */
export function routeInWireForms<Service extends DescService>(
  service: Service,
  forms: Readonly<Partial<Record<keyof Service["method"], WireForm>>>,
  implementation: Readonly<
    Partial<Record<keyof Service["method"], (request: never, context: HandlerContext) => unknown>>
  >,
): ServiceRoute {
  const methods = service.methods.map(
    (method): DescMethod => ({ ...method, ...forms[method.localName as keyof Service["method"]] }),
  );
  return { service: { ...service, methods }, implementation } as unknown as ServiceRoute;
}
