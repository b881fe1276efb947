// Writes the layers of src/ (STYLE: a folder may import only from those above it) into .oxlintrc.json as no-restricted-imports
// rules. Run it after a change of the list: node scripts/lint-arrows.mjs
import { readFileSync, writeFileSync } from 'node:fs'

const layers = [
  'common',
  'gen',
  'bytes',
  'record',
  'wire',
  'fs',
  'segment',
  'log',
  'topic',
  'coordination',
  'client',
  'grpc',
  'server',
  'cli',
]
/** Folders that stand apart: all that they may import. */
const only = {
  common: [],
  gen: [],
  bytes: ['common'],
  wire: ['common', 'gen', 'bytes'],
  client: ['common', 'gen', 'bytes', 'record', 'wire'],
}
/** Nobody but these may import the generated code. */
const genUsers = new Set(['gen', 'wire', 'client', 'grpc'])
/** Beside grpc and server, nobody reaches behind the seam into an engine. */
const engines = {
  patterns: ['**/log/disk/**', '**/log/memory/**'],
  users: new Set(['log', 'server']),
}

const overrides = layers.map((layer, i) => {
  const allowed = new Set([layer, ...(only[layer] ?? layers.slice(0, i))])
  if (!genUsers.has(layer)) allowed.delete('gen')
  if (layer !== 'cli') allowed.delete('client')
  const group = layers.filter((other) => !allowed.has(other)).map((other) => `**/${other}/**`)
  const patterns = [{ group, message: `${layer}/ may import only: ${[...allowed].join(', ')}` }]
  if (!engines.users.has(layer) && allowed.has('log')) {
    patterns.push({
      group: engines.patterns,
      message: 'above log/ only PartitionLog and LogStore are known',
    })
  }
  return {
    files: [`src/${layer}/**/*.ts`],
    rules: { 'no-restricted-imports': ['error', { patterns }] },
  }
})

const path = new URL('../.oxlintrc.json', import.meta.url)
const config = JSON.parse(readFileSync(path, 'utf8'))
config.overrides = [
  ...config.overrides.filter((o) => o.rules['no-restricted-imports'] === undefined),
  ...overrides,
]
writeFileSync(path, `${JSON.stringify(config, null, 2)}\n`)
