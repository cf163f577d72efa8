import { ApiService } from "@weightline/proto/api";
import { Health } from "@weightline/proto/grpc-health";
import { HealthService } from "@weightline/proto/health";
import { ModelService } from "@weightline/proto/model";
import { NodeService } from "@weightline/proto/node";
import { P2pService } from "@weightline/proto/p2p";
import type { CallerKind } from "@weightline/runtime";

/** Whoever may look: agents, operators, and workloads by their service account. */
const CLIENTS: readonly CallerKind[] = ["node", "operator", "account", "operator-account"];
const OPERATORS: readonly CallerKind[] = ["operator", "operator-account"];

/** Who may call what at the control plane when security is on; docs/security.md shows the same table. */
export const CONTROL_PLANE_RULES: Readonly<Record<string, readonly CallerKind[]>> = {
  // Probes of kubelets and load balancers have no credentials.
  [Health.typeName]: ["anyone"],
  [P2pService.typeName]: CLIENTS,
  [ModelService.typeName]: CLIENTS,
  [ApiService.typeName]: CLIENTS,
  [HealthService.typeName]: CLIENTS,
  [NodeService.typeName]: CLIENTS,
  [`${NodeService.typeName}/${NodeService.method.announce.name}`]: ["node"],
  [`${NodeService.typeName}/${NodeService.method.announceStream.name}`]: ["node"],
  [`${NodeService.typeName}/${NodeService.method.leave.name}`]: ["node"],
  // It fills other nodes' memory, which a pod cannot ask its own node's agent to do either.
  [`${NodeService.typeName}/${NodeService.method.fillNodes.name}`]: OPERATORS,
};

/** For services that have no rule of their own, as reflection. */
export const OTHER_SERVICES: readonly CallerKind[] = CLIENTS;
