import { existsSync, globSync } from "node:fs";

/** Names under which the library is known. */
const LIBRARY = "libnixl_capi.so*";
/** Where pip puts packages for every user. */
const PYTHON_FOLDERS = "/usr/{lib,local/lib}/python3*/{site,dist}-packages";
const VENDOR_FOLDER = "/opt/nvidia/nvda_nixl";

/** Where NIXL is looked for, in this order, and where it was found. */
export function findNixl(env: Readonly<Record<string, string | undefined>>): {
  path: string | undefined;
  places: string[];
} {
  const { MX_NIXL_LIBRARY: library = "", NIXL_PREFIX: prefix = "" } = env;
  const places = [
    library === "" ? "MX_NIXL_LIBRARY (not set)" : library,
    prefix === "" ? "NIXL_PREFIX (not set)" : prefix,
    "Python's site-packages",
    VENDOR_FOLDER,
  ];
  if (library !== "" && existsSync(library)) {
    return { path: library, places };
  }
  const patterns = [
    ...(prefix === "" ? [] : [`${prefix}/lib*/**/${LIBRARY}`]),
    `${PYTHON_FOLDERS}/.nixl_cu*.mesonpy.libs/${LIBRARY}`,
    `${VENDOR_FOLDER}/lib*/**/${LIBRARY}`,
  ];
  for (const pattern of patterns) {
    const [found] = globSync(pattern);
    if (found !== undefined) {
      return { path: found, places };
    }
  }
  return { path: undefined, places };
}
