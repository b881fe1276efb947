import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { connect } from '../src/client/index.ts'
import { BrokerProcess, withLoopMonitor, type BrokerProcessOptions } from './broker-process.ts'
import type { Cleanup } from './cleanup.ts'
import { findFileSystem } from './machine.ts'
import { LoadProcess } from './load-processes.ts'
import { MemberProcess } from './member-processes.ts'
import { QueueProcess } from './queue-processes.ts'

/** Options that every command has. */
export const COMMON_OPTIONS = {
  runs: { kind: 'count', default: '5', least: 1, about: 'how often; the median counts' },
  seed: { kind: 'count', default: '1', about: 'of the values' },
  data: {
    kind: 'text',
    about: 'folder on the disk to measure; default: a temporary one that is not in memory',
  },
  keep: { kind: 'flag', about: 'leave the data there' },
  json: { kind: 'text', about: 'file for the whole report' },
  proxyDelayMs: {
    kind: 'count',
    default: '0',
    about: 'milliseconds that the network takes each way, by a proxy',
  },
  brokerFlags: { kind: 'text', about: 'more flags for the broker, separated by spaces' },
  brokerNodeFlags: { kind: 'text', about: "flags for the broker's node, such as --cpu-prof" },
} as const

export interface CommonOptions {
  readonly data: string | undefined
  readonly keep: boolean
  readonly proxyDelayMs: number
  readonly brokerFlags: string | undefined
  readonly brokerNodeFlags: string | undefined
}

/** Where a benchmark's brokers, folders and processes live. All of them end with it. */
export class BenchEnvironment {
  readonly folder: string
  readonly #options: CommonOptions
  readonly #cleanup: Cleanup
  #folders = 0

  constructor(options: CommonOptions, cleanup: Cleanup) {
    this.#options = options
    this.#cleanup = cleanup
    const parent = options.data === undefined ? findDiskFolder() : resolve(options.data)
    this.folder = mkdtempSync(join(parent, 'millrace-bench-'))
    if (options.keep) console.error(`data stays in ${this.folder}`)
    else cleanup.add(() => rmSync(this.folder, { recursive: true, force: true }))
  }

  /** A broker on a folder of its own; or on `directory`, to start one again. */
  async startBroker(directory?: string): Promise<BenchBroker> {
    const flags = words(this.#options.brokerFlags)
    const options: BrokerProcessOptions = {
      directory: directory ?? join(this.folder, `run-${++this.#folders}`),
      flags,
      nodeFlags: words(this.#options.brokerNodeFlags),
    }
    const broker = await BrokerProcess.start(withLoopMonitor(options))
    const forget = this.#cleanup.add(() => broker.kill().then(() => undefined))
    const proxy =
      this.#options.proxyDelayMs === 0
        ? undefined
        : await startProxy(broker.address, this.#options.proxyDelayMs, this.#cleanup)
    const dispose = async (): Promise<void> => {
      forget()
      proxy?.end()
      if (!broker.hasEnded) await broker.stop()
    }
    return { process: broker, address: proxy?.address ?? broker.address, stop: dispose }
  }

  /** Removes what a run has written. */
  remove(directory: string): void {
    if (!this.#options.keep) rmSync(directory, { recursive: true, force: true })
  }

  startLoadProcess(): LoadProcess {
    const load = new LoadProcess()
    this.#cleanup.add(() => load.end())
    return load
  }

  startMemberProcess(): MemberProcess {
    const members = new MemberProcess()
    this.#cleanup.add(() => members.end())
    return members
  }

  startQueueProcess(): QueueProcess {
    const worker = new QueueProcess()
    this.#cleanup.add(() => worker.end())
    return worker
  }
}

export interface BenchBroker {
  readonly process: BrokerProcess
  /** The broker's, or the proxy's before it. */
  readonly address: string
  stop(): Promise<void>
}

export async function createTopic(
  address: string,
  name: string,
  partitions: number,
  largestBatchBytes: number,
): Promise<void> {
  const client = await connect({ url: address, clientId: 'bench' })
  try {
    // Room for the header, and for a record that alone is larger than a batch.
    const limit = Math.min(8 * 2 ** 20, Math.max(2 ** 20, largestBatchBytes + 1024))
    const config = { 'max.message.bytes': String(limit) }
    await client.admin.createTopic(name, { partitions, config })
  } finally {
    await client.close()
  }
}

/**
 * Has the kernel forget what it holds of the segments of a stopped broker, so that they are read from the disk. `dd` can ask for that without
 * rights (POSIX_FADV_DONTNEED), node cannot.
 */
export function dropPageCache(directory: string): void {
  execFileSync('sync')
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    const file = join(entry.parentPath, entry.name)
    execFileSync('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none'])
  }
}

/** A folder that is on a disk: what is written to a tmpfs is synced before it is written. */
function findDiskFolder(): string {
  const candidates = [tmpdir(), '/var/tmp', process.cwd()]
  const found = candidates.find((folder) => !/^(?:tmpfs|ramfs)$/.test(findFileSystem(folder)))
  return found ?? process.cwd()
}

interface ProxyProcess {
  readonly address: string
  end(): void
}

async function startProxy(
  target: string,
  delayMs: number,
  cleanup: Cleanup,
): Promise<ProxyProcess> {
  const dist = import.meta.url.endsWith('.ts') ? '../dist/bench/' : './'
  const module = fileURLToPath(new URL(`${dist}proxy-process.js`, import.meta.url))
  const child = spawn(process.execPath, [module, target, String(delayMs)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const end = (): void => {
    child.kill('SIGKILL')
  }
  cleanup.add(end)
  const address = await new Promise<string>((settle, reject) => {
    child.once('exit', (code) => reject(new Error(`the proxy ended with ${code}`)))
    createInterface({ input: child.stdout }).once('line', (line) => {
      settle(line.replace('listening on ', ''))
    })
  })
  return { address, end }
}

function words(text: string | undefined): readonly string[] {
  return text === undefined ? [] : text.split(' ').filter((word) => word !== '')
}
