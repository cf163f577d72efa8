export { AGENT_OPTIONS, type AgentConfiguration } from "./configuration.ts";
export { createNodeAgent, type NodeAgent } from "./node-agent.ts";
