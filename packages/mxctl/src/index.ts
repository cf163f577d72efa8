export { runMxctl } from "./program.ts";
