export { CONTROL_PLANE_OPTIONS, type ControlPlaneConfiguration } from "./configuration.ts";
export { type ControlPlane, createControlPlane } from "./control-plane.ts";
export type { Directory, Publication, StatusUpdate, Worker, WorkerQuery } from "./directory/directory.ts";
export { type Clock, createMemoryDirectory, type MemoryDirectoryOptions } from "./directory/memory-directory.ts";
