import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { MAIN, codeOf, demoEnvironment, showCommand, wait } from './demo-parts.ts'
import type { DemoBroker, Narrator } from './demo-parts.ts'
import { EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED } from './io.ts'
import { formatCount } from './progress-line.ts'
import { formatAge } from './time-format.ts'
import { ExitError } from './usage-error.ts'
import { connect, text, topic } from '../client/index.ts'
import type { Client } from '../client/index.ts'

const JOBS = 300
/** Of them, how many cannot be done until something has been mended. */
const BAD = 3
const CONCURRENCY = 4
const LEASE_MS = 2_000
const DELAY_MS = 2_000
/** A record that is due is there by then. */
const LATE_MS = 1_000
const PATIENCE_MS = 20_000
const POLL_MS = 50
/** Its steps take their own time. */
const SHORT_PAUSE_MS = 1_300
const GROUP = 'mailer'
const NAMES = ['A', 'B', 'C'] as const
const mails = topic('mails', { value: text })

/**
 * The scene of the queues: three workers share one partition, one of them dies with work in its hands, three records become dead letters and get a second
 * chance, one waits for its time; and all of it is still in the log. Every record is done, or this does not resolve to 0.
 */
export async function showQueues(
  show: Narrator,
  broker: DemoBroker,
  directory: string,
  signal: AbortSignal,
): Promise<number> {
  const address = await broker.start('127.0.0.1:0')
  await using client = await connect({ url: address, clientId: 'demo', timeoutMs: 10_000 })
  await client.admin.createTopic(mails.name, { partitions: 1, config: { 'jobs.enable': 'true' } })
  const scene = new QueueScene(show, client, address, directory, signal)
  try {
    return await scene.play()
  } finally {
    await scene.end()
  }
}

interface DoneLine {
  readonly worker: string
  readonly offset: number
}

class QueueScene {
  readonly #show: Narrator
  readonly #client: Client
  readonly #address: string
  readonly #signal: AbortSignal
  readonly #workers: DemoWorker[] = []
  /** A line from each command that was done. */
  readonly #journal: string
  /** There once somebody has mended what was broken. */
  readonly #mended: string
  readonly #command: string

  constructor(
    show: Narrator,
    client: Client,
    address: string,
    directory: string,
    signal: AbortSignal,
  ) {
    this.#show = show
    this.#client = client
    this.#address = address
    this.#signal = signal
    this.#journal = join(directory, 'done')
    this.#mended = join(directory, 'mended')
    this.#command =
      `sleep 0.05; grep -q bad && [ ! -e '${this.#mended}' ] && echo no such address >&2 && exit 1; ` +
      `echo "$DEMO_WORKER $MILLRACE_OFFSET" >> '${this.#journal}'`
  }

  async play(): Promise<number> {
    const show = this.#show
    await writeFile(this.#journal, '')
    await show.step(
      `${JOBS} mails to send, in one partition. Three workers share it, record by record; a shell command sends a mail, and its exit code says how that went.`,
    )
    let problem = await this.#work()
    if (problem !== undefined) return show.failure(problem)

    await show.step(
      `kill -9 for C, with ${CONCURRENCY} mails in its hands. It had a lease on each (${formatAge(LEASE_MS)} here, 30s by default); then they are somebody else's.`,
      SHORT_PAUSE_MS,
    )
    problem = await this.#kill()
    if (problem !== undefined) return show.failure(problem)

    await show.step(
      `${BAD} of them cannot be sent: code 1 is for good. They are dead letters, with what the command has said.`,
      SHORT_PAUSE_MS,
    )
    problem = await this.#redrive()
    if (problem !== undefined) return show.failure(problem)

    await show.step(`And one for later: it waits in the broker, on its disk, until it is due.`)
    problem = await this.#delay()
    if (problem !== undefined) return show.failure(problem)

    await show.step('All of it is done, and all of it is still there: it is a log.', SHORT_PAUSE_MS)
    problem = await this.#replay()
    return problem === undefined ? EXIT_DONE : show.failure(problem)
  }

  async end(): Promise<void> {
    for (const worker of this.#workers) worker.kill('SIGKILL')
    await Promise.allSettled(this.#workers.map((worker) => worker.ended))
  }

  async #work(): Promise<string | undefined> {
    this.#show.line(
      `$ millrace work ${mails.name} -g ${GROUP} --exec ./send-mail -c ${CONCURRENCY}`,
    )
    for (const name of NAMES) {
      this.#workers.push(new DemoWorker(name, this.#address, this.#command))
    }
    await this.#until('the workers join', async () => (await this.#members()) === NAMES.length)
    const producer = this.#client.producer()
    const step = Math.floor(JOBS / BAD)
    for (let i = 0; i < JOBS; i++) {
      producer.post(mails, { value: i % step === step - 1 ? `bad mail ${i}` : `mail ${i}` })
    }
    await producer.close()
    await this.#until('half of it is done', async () => (await this.#done()).length > JOBS / 2)
    const done = await this.#done()
    const shares = NAMES.map((name) => done.filter(({ worker }) => worker === name).length)
    this.#show.line(
      `after ${formatCount(done.length)}: ${NAMES.map((name, i) => `${name} ${shares[i]}`).join('   ')}`,
    )
    return shares.includes(0) ? 'one of the workers has got nothing' : undefined
  }

  async #kill(): Promise<string | undefined> {
    const victim = this.#workers[2]
    victim?.kill('SIGKILL')
    const killedMs = performance.now()
    await this.#until('the others do the rest', async () => {
      const { topics } = await this.#client.admin.describeQueue(GROUP)
      const [row] = topics.flatMap(({ partitions }) => partitions)
      return row !== undefined && row.ready + row.acquired + row.parked + row.deadLettering === 0
    })
    const offsets = new Set((await this.#done()).map(({ offset }) => offset))
    this.#show.line(
      `after ${formatAge(performance.now() - killedMs)} all is done: ${offsets.size} sent, ${BAD} not`,
    )
    return offsets.size === JOBS - BAD ? undefined : `${offsets.size} are sent, not ${JOBS - BAD}`
  }

  async #redrive(): Promise<string | undefined> {
    const list = await this.#run('queue', 'dead', 'list', GROUP, mails.name)
    if (list.out.trimEnd().split('\n').length !== BAD + 1)
      return `there are not ${BAD} dead letters`
    await writeFile(this.#mended, '')
    this.#show.line('somebody mends it; then they get a second chance, in this group only')
    const argv = ['queue', 'redrive', GROUP, mails.name, '--yes'] as const
    const { code } = await showCommand(this.#show, this.#address, argv, { lines: 1 })
    if (code !== EXIT_DONE) return `the redrive ended with code ${code}`
    await this.#until('they are sent', async () => {
      const offsets = new Set((await this.#done()).map(({ offset }) => offset))
      return offsets.size === JOBS
    })
    this.#show.line(`all ${JOBS} are sent`)
    return undefined
  }

  async #delay(): Promise<string | undefined> {
    const before = Date.now()
    const { code } = await this.#run(
      ...(['queue', 'send', mails.name, '-v', 'are you still there?', '--delay', '2s'] as const),
    )
    const after = Date.now()
    if (code !== EXIT_DONE) return `the command ended with code ${code}`
    await this.#until('it is sent', async () => (await this.#find(JOBS)) !== undefined)
    const sentMs = Date.now()
    const sent = await this.#find(JOBS)
    if (sent === undefined) return 'it was not sent'
    if (sentMs < before + DELAY_MS) return `it came ${before + DELAY_MS - sentMs} ms early`
    if (sentMs > after + DELAY_MS + LATE_MS) return 'it came late'
    this.#show.line(`${sent.worker} has sent it, in time`)
    return undefined
  }

  async #replay(): Promise<string | undefined> {
    for (const worker of this.#workers.slice(0, 2)) {
      worker.kill('SIGINT')
      const code = await worker.ended
      if (code !== EXIT_INTERRUPTED) return `${worker.name} ended with code ${code}: ${worker.err}`
    }
    const argv = ['tail', mails.name, '--no-follow', '-f', 'raw']
    const { out } = await showCommand(this.#show, this.#address, argv, {
      lines: 0,
      as: `tail ${mails.name} --no-follow -f raw | wc -l`,
    })
    const lines = out.trimEnd().split('\n').length
    this.#show.line(`  ${lines}`)
    return lines === JOBS + 1 ? undefined : `there are ${lines} records, not ${JOBS + 1}`
  }

  #run(...argv: readonly string[]): ReturnType<typeof showCommand> {
    return showCommand(this.#show, this.#address, argv)
  }

  async #members(): Promise<number> {
    for await (const { group } of this.#client.admin.groups({ type: 'queue' })) {
      if (group === GROUP) return (await this.#client.admin.describeQueue(GROUP)).members.length
    }
    return 0
  }

  async #find(wanted: number): Promise<DoneLine | undefined> {
    return (await this.#done()).find(({ offset }) => offset === wanted)
  }

  async #done(): Promise<readonly DoneLine[]> {
    const lines = (await readFile(this.#journal, 'utf8')).split('\n').slice(0, -1)
    return lines.map((line) => {
      const [worker = '', offset] = line.split(' ')
      return { worker, offset: Number(offset) }
    })
  }

  /** Looks until it is so. @throws ExitError when it does not come to be so, or a worker has ended by itself */
  async #until(what: string, isSo: () => Promise<boolean>): Promise<void> {
    const deadlineMs = performance.now() + PATIENCE_MS
    while (!(await isSo())) {
      if (this.#signal.aborted) throw new ExitError(EXIT_FAILED, 'interrupted')
      const broken = this.#workers.find((worker) => worker.hasFailed)
      if (broken !== undefined) {
        throw new ExitError(EXIT_FAILED, `worker ${broken.name} has ended: ${broken.err}`)
      }
      if (performance.now() > deadlineMs) {
        throw new ExitError(
          EXIT_FAILED,
          `this has not happened in ${formatAge(PATIENCE_MS)}: ${what}`,
        )
      }
      await wait(POLL_MS)
    }
  }
}

/** `millrace work --exec` in a process of its own. */
class DemoWorker {
  readonly name: string
  readonly ended: Promise<number | null>
  readonly #child: ChildProcess
  #isKilled = false
  #hasEnded = false
  err = ''

  constructor(name: string, address: string, command: string) {
    this.name = name
    const argv = ['work', mails.name, '-g', GROUP, '-c', String(CONCURRENCY), '--exec', command]
    const child = spawn(
      process.execPath,
      [MAIN, ...argv, '--lease', `${LEASE_MS}ms`, '--backoff', 'none', '--server', address],
      { stdio: ['ignore', 'ignore', 'pipe'], env: { ...demoEnvironment(), DEMO_WORKER: name } },
    )
    this.#child = child
    child.stderr.on('data', (piece: Buffer) => {
      this.err = (this.err + piece.toString()).slice(-2_000)
    })
    this.ended = codeOf(child).then((code) => {
      this.#hasEnded = true
      return code
    })
  }

  /** It has ended, and nobody told it to. */
  get hasFailed(): boolean {
    return this.#hasEnded && !this.#isKilled
  }

  kill(signal: NodeJS.Signals): void {
    this.#isKilled = true
    this.#child.kill(signal)
  }
}
