/**
 * Runs the examples, or those that are named: `npm run examples`, `npm run examples emails orders`. Each is a program of its own; ends with 1 when one
 * of them does.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

const EXAMPLES = ['emails', 'images', 'reminder', 'orders', 'replay']

const asked = process.argv.slice(2)
const unknown = asked.filter((name) => !EXAMPLES.includes(name))
if (unknown.length > 0) {
  console.error(`there is no example ${unknown.join(', ')}; there are ${EXAMPLES.join(', ')}`)
  process.exit(2)
}
const failed: string[] = []
for (const name of asked.length === 0 ? EXAMPLES : asked) {
  console.log(`\n── ${name} ──`)
  const file = fileURLToPath(new URL(`./${name}.js`, import.meta.url))
  const child = spawn(process.execPath, [file], { stdio: 'inherit' })
  const [code] = (await once(child, 'close')) as unknown[]
  if (code !== 0) failed.push(name)
}
console.log(failed.length === 0 ? '\nall of it holds' : `\nfailed: ${failed.join(', ')}`)
process.exit(failed.length === 0 ? 0 : 1)
