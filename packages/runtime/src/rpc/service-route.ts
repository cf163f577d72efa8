import type { DescService } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";

/** A service with its handlers, in Connect's form, so that one implementation serves gRPC and HTTP/1.1. */
export interface ServiceRoute<Service extends DescService = DescService> {
  service: Service;
  implementation: Partial<ServiceImpl<Service>>;
}

/** Makes a route with its types checked against each other. */
export function route<Service extends DescService>(
  service: Service,
  implementation: Partial<ServiceImpl<Service>>,
): ServiceRoute {
  return { service, implementation } as unknown as ServiceRoute;
}
