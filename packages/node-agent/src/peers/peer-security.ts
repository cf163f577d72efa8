import type { HandlerContext } from "@connectrpc/connect";
import { Health } from "@weightline/proto/grpc-health";
import { ServerReflection } from "@weightline/proto/grpc-reflection-v1";
import { ServerReflection as ServerReflectionV1Alpha } from "@weightline/proto/grpc-reflection-v1alpha";
import { WorkerService } from "@weightline/proto/p2p";
import { PeerService } from "@weightline/proto/peer";
import {
  type CallerKind,
  type ChannelTls,
  channelTo,
  checkSecurityFiles,
  checkSpeaksFor,
  createAccess,
  createGrpcChannel,
  type Fault,
  type GrpcChannel,
  identityUri,
  isCertifiableName,
  type Logger,
  openCertificates,
  parseAddress,
  type ServerSecurity,
} from "@weightline/runtime";
import type { AgentConfiguration } from "../configuration.ts";

/** A channel to a node's agent; where security is on, only that node is spoken to. */
export type DialPeer = (node: string, address: string) => GrpcChannel;

/** What the agent checks of those that call it, and shows to those that it calls. */
export interface PeerSecurity {
  /** Undefined: off. */
  readonly server: ServerSecurity | undefined;
  /** For the channel to the control plane; undefined: plain. */
  readonly controlPlane: ChannelTls | undefined;
  readonly dial: DialPeer;
  /** Throws PermissionDenied when the caller is another than the node that it speaks of. */
  checkNode(context: HandlerContext, node: string): void;
  /** Unix ms at which the agent's certificate ends; undefined: security is off. */
  validToMs(): number | undefined;
  close(): void;
}

const { fill, transfers, drain } = PeerService.method;
/** Whoever has a certificate: it tells what everybody can read in the .proto files. */
const KNOWN: readonly CallerKind[] = ["operator", "node", "control-plane"];

/** Who may call what at an agent when security is on; docs/security.md shows the same table. */
export const AGENT_RULES: Readonly<Record<string, readonly CallerKind[]>> = {
  [Health.typeName]: ["anyone"],
  [PeerService.typeName]: ["node"],
  [`${PeerService.typeName}/${fill.name}`]: ["control-plane"],
  [`${PeerService.typeName}/${transfers.name}`]: ["control-plane"],
  [`${PeerService.typeName}/${drain.name}`]: ["control-plane"],
  [WorkerService.typeName]: ["node"],
  [ServerReflection.typeName]: KNOWN,
  [ServerReflectionV1Alpha.typeName]: KNOWN,
};

/** What the settings of security must be together. */
export function checkAgentSecurity(values: AgentConfiguration): Fault | undefined {
  if (values.securityMode === "off") {
    return undefined;
  }
  if (values.tlsCertificateFile === "") {
    return {
      message:
        "security.mode enforce needs security.tls_certificate_file, security.tls_key_file and security.tls_ca_file",
      wayOut: "give this node's certificate, its key and the authorities; docs/security.md tells what it must name",
    };
  }
  if (!isCertifiableName(values.nodeName)) {
    return {
      message: `no certificate can name the node "${values.nodeName}"`,
      wayOut: "give --node-name 1 to 253 of the characters A-Z, a-z, 0-9, dot, hyphen and underscore",
    };
  }
  return checkSecurityFiles(values);
}

function dialPlain(_node: string, address: string): GrpcChannel {
  return createGrpcChannel({ addresses: [parseAddress(address, "peer address")] });
}

/** Opens what the settings name. Throws InvalidArgument, naming the file. */
export function createPeerSecurity(configuration: AgentConfiguration, log: Logger): PeerSecurity {
  if (configuration.securityMode === "off") {
    return {
      server: undefined,
      controlPlane: undefined,
      dial: dialPlain,
      checkNode: () => undefined,
      validToMs: () => undefined,
      close: () => undefined,
    };
  }
  const { trustDomain, nodeName } = configuration;
  const own = identityUri(trustDomain, { kind: "node", name: nodeName });
  const mayBe = (uri: string) => (uri === own ? undefined : `it is that of ${uri}, not of ${own}`);
  const certificates = openCertificates(configuration, (owner) => mayBe(identityUri(trustDomain, owner)), log);
  const { clientContext } = certificates;
  return {
    server: { certificates, log, authorize: createAccess({ rules: AGENT_RULES, others: [], trustDomain }) },
    controlPlane: channelTo(clientContext, trustDomain, { kind: "control-plane" }),
    dial: (name, address) =>
      createGrpcChannel({
        addresses: [parseAddress(address, "peer address")],
        tls: channelTo(clientContext, trustDomain, { kind: "node", name }),
      }),
    checkNode: (context, node) => checkSpeaksFor(context, node, trustDomain),
    validToMs: () => certificates.current().validToMs,
    close: () => certificates.stop(),
  };
}
