import { createRequire } from 'node:module'

/** The version in package.json, which lies two folders above in src/ and three in dist/src/. */
export function findVersion(): string {
  const require = createRequire(import.meta.url)
  for (const path of ['../../package.json', '../../../package.json']) {
    try {
      const found = require(path) as { name?: unknown; version?: unknown } // JSON; both are checked.
      if (found.name === 'millrace' && typeof found.version === 'string') return found.version
    } catch {
      continue // Not there: the other place has it.
    }
  }
  return 'unknown'
}
