import { mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

/** Makes an empty folder for the running test, removed with everything in it when the test ends. Call it inside a test. */
export function temporaryDirectory(): string {
  // The temporary folder may itself be a link; tests compare paths, so they get the real one.
  const path = mkdtempSync(join(realpathSync(tmpdir()), 'millrace-test-'))
  onTestFinished(() => rmSync(path, { recursive: true, force: true }))
  return path
}
