import type { DescService } from "@bufbuild/protobuf";
import { type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";

/** A client of a service behind a Unix socket. */
export function createLocalClient<Service extends DescService>(service: Service, socketPath: string): Client<Service> {
  const transport = createConnectTransport({
    baseUrl: "http://localhost",
    httpVersion: "1.1",
    useBinaryFormat: true,
    acceptCompression: [],
    nodeOptions: { socketPath },
  });
  return createClient(service, transport);
}
