import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { cpus, loadavg, release, totalmem } from 'node:os'
import { crc32cTier } from '../src/bytes/crc32c.ts'
import { lz4Tier } from '../src/record/compression.ts'
import { findVersion } from '../src/server/version.ts'

/** What a number is worth nothing without. */
export interface MachineFacts {
  readonly millrace: string
  readonly commit: string
  readonly node: string
  readonly grpc: string
  readonly platform: string
  readonly kernel: string
  readonly cpu: string
  readonly cores: number
  readonly memoryBytes: number
  /** Of the data directory. */
  readonly fileSystem: string
  readonly crc32c: string
  readonly lz4: string
  /** Of the last minute, before the benchmark. Above 0.1 or so, somebody else was using the machine. */
  readonly loadAverage: number
  readonly at: string
}

export function findMachineFacts(directory: string): MachineFacts {
  const processors = cpus()
  return {
    millrace: findVersion(),
    commit: findCommit(),
    node: process.version,
    grpc: findGrpcVersion(),
    platform: `${process.platform} ${process.arch}`,
    kernel: release(),
    cpu: processors[0]?.model.trim() ?? 'unknown',
    cores: processors.length,
    memoryBytes: totalmem(),
    fileSystem: findFileSystem(directory),
    crc32c: crc32cTier,
    lz4: lz4Tier,
    loadAverage: Math.round((loadavg()[0] ?? 0) * 100) / 100,
    at: new Date().toISOString(),
  }
}

/** Type of the file system that holds `directory`, from /proc; `unknown` where there is none. */
export function findFileSystem(directory: string): string {
  let mounts: string
  try {
    mounts = readFileSync('/proc/self/mounts', 'utf8')
  } catch {
    return 'unknown' // Not Linux.
  }
  let best = ''
  let type = 'unknown'
  for (const line of mounts.split('\n')) {
    const [, at = '', kind = ''] = line.split(' ')
    const isAbove = at === '/' || directory === at || directory.startsWith(`${at}/`)
    // Of mounts at one place, the last is the one that is seen.
    if (at === '' || !isAbove || at.length < best.length) continue
    best = at
    type = kind
  }
  return type
}

function findCommit(): string {
  try {
    const changed = askGit('status', '--porcelain') !== ''
    return `${askGit('rev-parse', '--short', 'HEAD')}${changed ? ' with changes' : ''}`
  } catch {
    return 'unknown' // No git, or no checkout.
  }
}

function findGrpcVersion(): string {
  const found: unknown = createRequire(import.meta.url)('@grpc/grpc-js/package.json')
  return (found as { readonly version?: string }).version ?? 'unknown' // A package.json.
}

function askGit(...argv: readonly string[]): string {
  return execFileSync('git', argv, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
}
