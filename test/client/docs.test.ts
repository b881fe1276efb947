import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it, onTestFinished } from 'vitest'

const root = join(dirname(fileURLToPath(import.meta.url)), '../..')

/** The examples of a page, one after the other: later ones use what earlier ones have made. */
function examplesOf(page: string): string {
  const text = readFileSync(join(root, page), 'utf8')
  return [...text.matchAll(/^```ts\n(.*?)^```$/gms)].map((match) => match[1]).join('\n')
}

/** What the compiler has to say about a program that imports the package, and not about the package. Empty: nothing. */
function faultsOf(program: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'millrace-docs-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const compilerOptions = {
    isolatedDeclarations: false,
    paths: { millrace: [join(root, 'src/client/index.ts')] },
    typeRoots: [join(root, 'node_modules/@types')],
  }
  const tsconfig = {
    extends: join(root, 'tsconfig.json'),
    compilerOptions,
    include: [],
    files: ['examples.ts'],
  }
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(tsconfig))
  writeFileSync(join(folder, 'examples.ts'), program)
  const require = createRequire(import.meta.url)
  const tsc = join(dirname(require.resolve('typescript/package.json')), 'bin/tsc')
  try {
    execFileSync(process.execPath, [tsc, '-p', folder], {
      cwd: folder,
      encoding: 'utf8',
      stdio: 'pipe',
    })
    return ''
  } catch (error) {
    const lines = String((error as { stdout?: unknown }).stdout).split('\n')
    return lines.filter((line) => line.startsWith('examples.ts')).join('\n')
  }
}

it('shows only what compiles on the page about work queues', () => {
  const program = examplesOf('docs/queues.md')
  expect(program.length).toBeGreaterThan(3000)
  expect(faultsOf(program)).toBe('')
  expect(faultsOf(program.replace('delayMs: 24', 'delay: 24'))).toMatch(/'delay' does not exist/)
})
