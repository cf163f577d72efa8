export { CONTROL_PLANE_OPTIONS, type ControlPlaneConfiguration } from "./configuration.ts";
export { type ControlPlane, createControlPlane } from "./control-plane.ts";
export type { Clock, Directory, FoundWorker, Publication, StatusUpdate, WorkerQuery } from "./directory/directory.ts";
export type { BackendErrorKind, DirectoryObserver } from "./directory/directory-observer.ts";
export { createMemoryDirectory, type MemoryDirectoryOptions } from "./directory/memory-directory.ts";
export { type PublishedWorker, readWorker } from "./directory/published-worker.ts";
export { parseRedisUrl, type RedisAddress } from "./directory/redis/redis-address.ts";
export { createRedisDirectory, type RedisDirectoryOptions } from "./directory/redis/redis-directory.ts";
