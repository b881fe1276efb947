import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '../..')

/** JavaScript of one source file and all it imports, for tests that run it in a process of its own. */
export interface Compiled {
  /** URL of the compiled file. */
  readonly url: string
  remove(): void
}

/** Compiles `file` (relative to the repository, such as `src/fs/directory-lock.ts`). Takes about half a second. */
export function compile(file: string): Compiled {
  const folder = mkdtempSync(join(tmpdir(), 'millrace-compiled-'))
  // A test may run it as another user.
  chmodSync(folder, 0o755)
  writeFileSync(
    join(folder, 'tsconfig.json'),
    JSON.stringify({
      extends: join(root, 'tsconfig.json'),
      compilerOptions: {
        noEmit: false,
        declaration: false,
        isolatedDeclarations: false,
        rootDir: root,
        outDir: join(folder, 'out'),
        typeRoots: [join(root, 'node_modules/@types')],
      },
      include: [],
      files: [join(root, file)],
    }),
  )
  // What it imports of other packages.
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  const require = createRequire(import.meta.url)
  const tsc = join(dirname(require.resolve('typescript/package.json')), 'bin/tsc')
  execFileSync(process.execPath, [tsc, '-p', folder], { stdio: ['ignore', 'inherit', 'inherit'] })
  const out = join(folder, 'out', relative(root, join(root, file)).replace(/\.ts$/, '.js'))
  return {
    url: pathToFileURL(out).href,
    remove: () => rmSync(folder, { recursive: true, force: true }),
  }
}
