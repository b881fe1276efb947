import { BrokerError } from '../common/errors.ts'
import { findNearest } from '../common/names.ts'
import {
  DAY_MS,
  formatBytes,
  formatDurationMs,
  GIB,
  HOUR_MS,
  KIB,
  MIB,
  MINUTE_MS,
  parseBytes,
  parseDurationMs,
  SECOND_MS,
  TIB,
} from '../common/units.ts'

export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error'
export type LogFormat = 'json' | 'pretty' | 'auto'

/** All settings of one broker process. Plain data, parsed once, frozen. */
export interface BrokerConfig {
  readonly data: string
  readonly listen: string
  /** `host:port` that clients are told to use; empty: where the broker listens. */
  readonly advertise: string
  readonly maxMessageBytes: number
  readonly cacheBytes: number
  readonly defaultPartitions: number
  readonly maxPartitions: number
  readonly retentionCheckMs: number
  readonly logLevel: LogLevel
  readonly logFormat: LogFormat
  readonly checkpointIntervalMs: number
  readonly checkpointBytes: number
  readonly openSegments: number
  /** Infinity: as the disk engine chooses. */
  readonly minFreeBytes: number
  readonly drainTimeoutMs: number
  readonly groupSessionTimeoutMs: number
  readonly groupMinSessionTimeoutMs: number
  readonly groupMaxSessionTimeoutMs: number
  readonly groupRebalanceIntervalMs: number
  readonly groupMaxSize: number
  readonly groupOffsetsRetentionMs: number
  readonly groupOnCorruption: 'halt' | 'skip'
  readonly queueStateLingerMs: number
  readonly insecure: boolean
}

export type SettingKey = keyof BrokerConfig
export type SettingKind = 'text' | 'bytes' | 'duration' | 'count' | 'boolean' | 'choice'
export type SettingSource = 'flag' | 'environment' | 'file' | 'default'

/** One row of the settings table: the flag, the variable and the file key are the same words in three spellings. */
export interface Setting {
  readonly key: SettingKey
  /** `--max-message-bytes` */
  readonly flag: string
  /** `MILLRACE_MAX_MESSAGE_BYTES` */
  readonly variable: string
  readonly kind: SettingKind
  /** As a person would write it. */
  readonly defaultText: string
  /** Of numbers, in bytes, milliseconds or a count: [least, most]. */
  readonly range: readonly [number, number] | undefined
  readonly choices: readonly string[] | undefined
  readonly description: string
}

function setting(
  key: SettingKey,
  kind: SettingKind,
  defaultText: string,
  description: string,
  limits: { range?: readonly [number, number]; choices?: readonly string[] } = {},
): Setting {
  const words = key.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
  // `checkpointIntervalMs` and `maxMessageBytes` keep their unit in every spelling but that of a duration, which brings its own.
  const spoken = words.replace(/-ms$/, '')
  return {
    key,
    flag: `--${spoken}`,
    variable: `MILLRACE_${spoken.replaceAll('-', '_').toUpperCase()}`,
    kind,
    defaultText,
    range: limits.range,
    choices: limits.choices,
    description,
  }
}

export const SETTINGS: readonly Setting[] = [
  setting('data', 'text', './segments', 'data directory; made when it is not there'),
  setting(
    'listen',
    'text',
    '127.0.0.1:9292',
    'address and port of the gRPC server; port 0 picks one',
  ),
  setting(
    'advertise',
    'text',
    '',
    'host:port that clients are told to use; empty: the listening one',
  ),
  setting(
    'maxMessageBytes',
    'bytes',
    '8MiB',
    'largest request; must hold the largest batch of a topic',
    {
      range: [64 * KIB, 16 * MIB],
    },
  ),
  setting(
    'cacheBytes',
    'bytes',
    '256MiB',
    'memory for the last batches of all partitions together',
    {
      range: [0, TIB],
    },
  ),
  setting(
    'defaultPartitions',
    'count',
    '1',
    'partitions of a topic that is created without a number',
    {
      range: [1, 10_000],
    },
  ),
  setting('maxPartitions', 'count', '20000', 'partitions of all topics together', {
    range: [1, 1_000_000],
  }),
  setting(
    'retentionCheckMs',
    'duration',
    '5m',
    'how often retention is applied to each partition',
    {
      range: [SECOND_MS, DAY_MS],
    },
  ),
  setting('logLevel', 'choice', 'info', 'what goes to the log on stderr', {
    choices: ['trace', 'debug', 'info', 'warn', 'error'],
  }),
  setting('logFormat', 'choice', 'auto', 'form of the log; auto: pretty on a terminal, else json', {
    choices: ['json', 'pretty', 'auto'],
  }),
  setting('checkpointIntervalMs', 'duration', '5s', 'longest time between two checkpoints', {
    range: [SECOND_MS, HOUR_MS],
  }),
  setting(
    'checkpointBytes',
    'bytes',
    '64MiB',
    'appended bytes after which a checkpoint is written',
    {
      range: [64 * KIB, 16 * GIB],
    },
  ),
  setting('openSegments', 'count', '512', 'sealed segments whose files are kept open', {
    range: [4, 100_000],
  }),
  setting(
    'minFreeBytes',
    'bytes',
    'auto',
    'appends are refused while less is free; 0: never; auto: 1GiB, or 5 % of a larger disk',
    { range: [0, TIB] },
  ),
  setting(
    'drainTimeoutMs',
    'duration',
    '10s',
    'how long a stop waits for calls that are under way',
    {
      range: [0, 10 * MINUTE_MS],
    },
  ),
  setting(
    'groupSessionTimeoutMs',
    'duration',
    '45s',
    'silence after which a member of a group is given up, unless it asks for another time',
    { range: [100, HOUR_MS] },
  ),
  setting(
    'groupMinSessionTimeoutMs',
    'duration',
    '6s',
    'the shortest such time that a member may ask for',
    { range: [100, HOUR_MS] },
  ),
  setting('groupMaxSessionTimeoutMs', 'duration', '30m', 'the longest one', {
    range: [100, DAY_MS],
  }),
  setting(
    'groupRebalanceIntervalMs',
    'duration',
    '1s',
    'shortest time between two target assignments of one group',
    { range: [0, MINUTE_MS] },
  ),
  setting('groupMaxSize', 'count', '10000', 'members of one group', { range: [1, 100_000] }),
  setting(
    'groupOffsetsRetentionMs',
    'duration',
    '7d',
    'how long committed offsets are kept after the last member of a group has gone',
    { range: [MINUTE_MS, 10 * 365 * DAY_MS] },
  ),
  setting(
    'groupOnCorruption',
    'choice',
    'halt',
    'when records of groups are damaged; halt: their groups refuse to work, skip: what is damaged is forgotten',
    { choices: ['halt', 'skip'] },
  ),
  setting(
    'queueStateLingerMs',
    'duration',
    '2ms',
    'while many come, acknowledgements of a partition gather for so long before they are written together',
    { range: [0, 100] },
  ),
  setting('insecure', 'boolean', 'false', 'listen on other than loopback addresses without TLS'),
]

const SETTING_OF: ReadonlyMap<string, Setting> = new Map(SETTINGS.map((row) => [row.key, row]))

/** Environment variables with our prefix that are not settings: the client's and those for debugging. */
const OTHER_VARIABLES: ReadonlySet<string> = new Set([
  'MILLRACE_SERVER',
  'MILLRACE_DEBUG',
  'MILLRACE_CONFIG',
])

export interface ConfigSources {
  /** By setting key, as given on the command line. */
  readonly flags?: Readonly<Record<string, string | boolean | undefined>> | undefined
  readonly environment?: Readonly<Record<string, string | undefined>> | undefined
  /** Text of the settings file, a JSON object by setting key. */
  readonly fileText?: string | undefined
  readonly fileName?: string | undefined
}

export interface ResolvedConfig {
  readonly config: BrokerConfig
  readonly sources: Readonly<Record<SettingKey, SettingSource>>
}

/**
 * Puts the settings together: flag over environment over file over default.
 * @throws BrokerError INVALID_CONFIG that names the setting as it was written, and the nearest known one
 */
export function parseConfig(from: ConfigSources = {}): ResolvedConfig {
  const file = parseFile(from.fileText, from.fileName ?? 'settings file')
  for (const key of Object.keys(from.flags ?? {})) {
    if (!SETTING_OF.has(key)) unknown(key, SETTING_OF.keys())
  }
  checkVariables(from.environment ?? {})
  const config: Record<string, string | number | boolean> = {}
  const sources: Record<string, SettingSource> = {}
  for (const row of SETTINGS) {
    const flag = from.flags?.[row.key]
    const variable = from.environment?.[row.variable]
    const inFile = file[row.key]
    if (flag !== undefined) {
      config[row.key] = parseValue(row, row.flag, flag)
      sources[row.key] = 'flag'
    } else if (variable !== undefined && variable !== '') {
      config[row.key] = parseValue(row, row.variable, variable)
      sources[row.key] = 'environment'
    } else if (inFile !== undefined) {
      config[row.key] = parseValue(row, `${row.key} in ${from.fileName ?? 'settings file'}`, inFile)
      sources[row.key] = 'file'
    } else {
      config[row.key] = parseValue(row, row.key, row.defaultText)
      sources[row.key] = 'default'
    }
  }
  // Every row of the table has been filled in, by the kind that BrokerConfig says; a test reads each.
  const whole = Object.freeze(config) as unknown as BrokerConfig
  checkListen(whole)
  checkSessionTimeouts(whole)
  if (whole.advertise !== '') parseAddress('advertise', whole.advertise)
  return { config: whole, sources: Object.freeze(sources) }
}

function unknown(name: string, candidates: Iterable<string>): never {
  const nearest = findNearest(name, candidates)
  const hint = nearest.length > 0 ? `; did you mean ${nearest.join(' or ')}?` : ''
  throw new BrokerError('INVALID_CONFIG', `there is no setting ${name}${hint}`, {
    key: name,
    nearest,
  })
}

function checkVariables(environment: Readonly<Record<string, string | undefined>>): void {
  const known = new Set(SETTINGS.map((row) => row.variable))
  for (const name of Object.keys(environment)) {
    if (!name.startsWith('MILLRACE_') || known.has(name) || OTHER_VARIABLES.has(name)) continue
    // Kubernetes sets these in every pod when a service is called millrace.
    if (/^MILLRACE_(?:SERVICE_|PORT(?:_|$))/.test(name)) continue
    unknown(name, known)
  }
}

function parseFile(text: string | undefined, name: string): Readonly<Record<string, unknown>> {
  if (text === undefined) return {}
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new BrokerError('INVALID_CONFIG', `${name} is not JSON: ${String(error)}`, {}, error)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new BrokerError('INVALID_CONFIG', `${name} must hold one JSON object of settings`)
  }
  for (const key of Object.keys(value)) if (!SETTING_OF.has(key)) unknown(key, SETTING_OF.keys())
  return value as Readonly<Record<string, unknown>> // Checked above; each value is checked when it is read.
}

function parseValue(row: Setting, name: string, value: unknown): string | number | boolean {
  const fail = (why: string): never => {
    const shown = JSON.stringify(value) ?? 'nothing'
    throw new BrokerError('INVALID_CONFIG', `${name}: ${shown} ${why}`, { key: row.key })
  }
  if (row.kind === 'boolean') {
    if (value === true || value === 'true' || value === '1') return true
    if (value === false || value === 'false' || value === '0') return false
    return fail('is neither true nor false')
  }
  if (typeof value !== 'string' && typeof value !== 'number')
    return fail('is neither text nor a number')
  const text = String(value)
  if (row.kind === 'text') return text
  if (row.kind === 'choice') {
    return row.choices?.includes(text) === true
      ? text
      : fail(`is not one of ${row.choices?.join(', ')}`)
  }
  // Infinity stands for `auto`, as in DiskOptions.
  if (text === 'auto' && row.defaultText === 'auto') return Infinity
  const number = parseNumber(row, name, text)
  const [least, most] = row.range ?? [0, Number.MAX_SAFE_INTEGER]
  if (number < least || number > most) return fail(`is outside ${describeRange(row)}`)
  return number
}

function parseNumber(row: Setting, name: string, text: string): number {
  try {
    if (row.kind === 'bytes') return parseBytes(text)
    if (row.kind === 'duration') return parseDurationMs(text)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new BrokerError('INVALID_CONFIG', `${name}: ${why}`, { key: row.key }, error)
  }
  if (/^\d{1,15}$/.test(text)) return Number(text)
  throw new BrokerError('INVALID_CONFIG', `${name}: "${text}" is not a whole number`, {
    key: row.key,
  })
}

/** What a setting takes, for help and messages: `64KiB to 16MiB`, `json, pretty, auto`. */
export function describeRange(row: Setting): string {
  if (row.choices !== undefined) return row.choices.join(', ')
  if (row.kind === 'boolean') return 'true, false'
  if (row.range === undefined) return 'text'
  return row.range.map((limit) => formatValue(row, limit)).join(' to ')
}

function formatValue(row: Setting, value: string | number | boolean): string {
  if (typeof value !== 'number') return String(value)
  if (value === Infinity) return 'auto'
  if (row.kind === 'bytes') return formatBytes(value)
  return row.kind === 'duration' ? formatDurationMs(value) : String(value)
}

export interface ExplainedSetting {
  readonly key: SettingKey
  readonly flag: string
  readonly variable: string
  readonly value: string
  readonly source: SettingSource
  readonly defaultText: string
  readonly range: string
  readonly description: string
}

/** Every setting with its value and where that came from. */
export function explainConfig(resolved: ResolvedConfig): readonly ExplainedSetting[] {
  return SETTINGS.map((row) => ({
    key: row.key,
    flag: row.flag,
    variable: row.variable,
    value: formatValue(row, resolved.config[row.key]),
    source: resolved.sources[row.key],
    defaultText: row.defaultText,
    range: describeRange(row),
    description: row.description,
  }))
}

/** What `serve --print-config` prints: a line per setting, `key = value  (source)`. */
export function printConfig(resolved: ResolvedConfig): string {
  const rows = explainConfig(resolved)
  const keyWidth = Math.max(...rows.map((row) => row.key.length))
  const valueWidth = Math.max(...rows.map((row) => row.value.length))
  return rows
    .map(
      (row) => `${row.key.padEnd(keyWidth)} = ${row.value.padEnd(valueWidth)}  (${row.source})\n`,
    )
    .join('')
}

export interface HostAndPort {
  readonly host: string
  readonly port: number
}

/** Reads `host:port`, `[v6]:port` or `:port` (all addresses). @throws BrokerError INVALID_CONFIG */
export function parseAddress(key: SettingKey, text: string): HostAndPort {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([^:[\]\s]*)):(\d{1,5})$/.exec(text)
  const port = Number(match?.[3])
  if (match === null || !(port <= 65_535)) {
    throw new BrokerError(
      'INVALID_CONFIG',
      `${key}: "${text}" is not an address: write host:port, such as 127.0.0.1:9292 or [::1]:9292`,
      { key },
    )
  }
  const host = match[1] ?? match[2] ?? ''
  return { host: host === '' ? '0.0.0.0' : host, port }
}

export function formatAddress(address: HostAndPort): string {
  const host = address.host.includes(':') ? `[${address.host}]` : address.host
  return `${host}:${address.port}`
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(?:\.\d{1,3}){3}$/.test(host)
}

function checkSessionTimeouts(config: BrokerConfig): void {
  const { groupMinSessionTimeoutMs: least, groupMaxSessionTimeoutMs: most } = config
  const { groupSessionTimeoutMs: normal } = config
  if (least <= normal && normal <= most) return
  throw new BrokerError(
    'INVALID_CONFIG',
    `groupSessionTimeoutMs: ${formatDurationMs(normal)} is outside groupMinSessionTimeoutMs to groupMaxSessionTimeoutMs, ${formatDurationMs(least)} to ${formatDurationMs(most)}`,
    { key: 'groupSessionTimeoutMs' },
  )
}

/** Plaintext stays on this machine unless somebody says that it may leave (CONTRACT §5). */
function checkListen(config: BrokerConfig): void {
  const { host } = parseAddress('listen', config.listen)
  if (config.insecure || isLoopback(host)) return
  throw new BrokerError(
    'INVALID_CONFIG',
    `listen: ${config.listen} can be reached from other machines and the connection is not encrypted; ` +
      'say --insecure to allow that, or listen on 127.0.0.1',
    { key: 'listen' },
  )
}
