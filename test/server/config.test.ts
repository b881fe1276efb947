import { describe, expect, it } from 'vitest'
import {
  describeRange,
  explainConfig,
  formatAddress,
  parseAddress,
  parseConfig,
  printConfig,
  SETTINGS,
} from '../../src/server/config.ts'

describe('settings', () => {
  it('have a default that their own range allows', () => {
    const { config, sources } = parseConfig()
    expect(config).toMatchObject({
      data: './segments',
      listen: '127.0.0.1:9292',
      cacheBytes: 256 * 2 ** 20,
      retentionCheckMs: 300_000,
      drainTimeoutMs: 10_000,
      groupSessionTimeoutMs: 45_000,
      groupMinSessionTimeoutMs: 6000,
      groupMaxSessionTimeoutMs: 1_800_000,
      groupRebalanceIntervalMs: 1000,
      groupMaxSize: 10_000,
      groupOffsetsRetentionMs: 7 * 24 * 3_600_000,
      groupOnCorruption: 'halt',
      queueStateLingerMs: 2,
      insecure: false,
    })
    expect(new Set(Object.values(sources))).toEqual(new Set(['default']))
    expect(Object.keys(config).sort()).toEqual(SETTINGS.map((row) => row.key).sort())
    expect(Object.isFrozen(config)).toBe(true)
  })

  it('are called alike as flag, variable and file key', () => {
    const names = SETTINGS.map((row) => [row.key, row.flag, row.variable])
    expect(names).toContainEqual(['cacheBytes', '--cache-bytes', 'MILLRACE_CACHE_BYTES'])
    expect(names).toContainEqual(['drainTimeoutMs', '--drain-timeout', 'MILLRACE_DRAIN_TIMEOUT'])
  })

  it('come from the flag before the environment before the file before the default', () => {
    const from = {
      flags: { cacheBytes: '3MiB' },
      environment: { MILLRACE_CACHE_BYTES: '2MiB', MILLRACE_MAX_PARTITIONS: '22' },
      fileText: '{"cacheBytes": "1MiB", "maxPartitions": 11, "defaultPartitions": 3}',
    }
    const { config, sources } = parseConfig(from)
    expect([config.cacheBytes, sources.cacheBytes]).toEqual([3 * 2 ** 20, 'flag'])
    expect([config.maxPartitions, sources.maxPartitions]).toEqual([22, 'environment'])
    expect([config.defaultPartitions, sources.defaultPartitions]).toEqual([3, 'file'])
    expect(sources.data).toBe('default')
  })

  it('take units and print them back with where they come from', () => {
    const resolved = parseConfig({ flags: { cacheBytes: '1GiB', retentionCheckMs: '90s' } })
    const printed = printConfig(resolved)
    expect(printed).toMatch(/^cacheBytes +(?:= )?= 1GiB +\(flag\)$/m)
    expect(printed).toMatch(
      /^retentionCheckMs += 90000?m?s? +\(flag\)$|^retentionCheckMs += 90s +\(flag\)$/m,
    )
    expect(printed).toMatch(/^minFreeBytes += auto +\(default\)$/m)
    for (const { value, key } of explainConfig(resolved)) {
      // What is printed can be given again, and means the same.
      if (value !== '')
        expect(parseConfig({ flags: { [key]: value } }).config[key]).toEqual(resolved.config[key])
    }
  })

  it.each([
    [{ flags: { cacheByte: '1' } }, /no setting cacheByte; did you mean cacheBytes\?/],
    [{ environment: { MILLRACE_CACHE_BYTE: '1' } }, /did you mean MILLRACE_CACHE_BYTES/],
    [{ fileText: '{"lissten": "x"}' }, /did you mean listen/],
    [{ fileText: '{' }, /is not JSON/],
    [{ fileText: '[]' }, /one JSON object/],
    [{ flags: { cacheBytes: 'lots' } }, /^--cache-bytes: "lots" is not a size/],
    [{ flags: { maxPartitions: '0' } }, /--max-partitions: "0" is outside 1 to 1000000/],
    [{ flags: { maxPartitions: '1.5' } }, /is not a whole number/],
    [
      { environment: { MILLRACE_DRAIN_TIMEOUT: '3 years' } },
      /MILLRACE_DRAIN_TIMEOUT: .* is not a duration/,
    ],
    [{ flags: { logLevel: 'loud' } }, /is not one of trace, debug, info, warn, error/],
    [{ flags: { insecure: 'perhaps' } }, /is neither true nor false/],
    [{ fileText: '{"data": {}}' }, /neither text nor a number/],
    [{ flags: { listen: 'nowhere' } }, /is not an address/],
    [{ flags: { listen: '127.0.0.1:70000' } }, /is not an address/],
    [{ flags: { listen: '0.0.0.0:9292' } }, /--insecure/],
    [{ flags: { advertise: 'x' } }, /advertise: "x" is not an address/],
    [{ flags: { groupOnCorruption: 'hope' } }, /--group-on-corruption: .* not one of halt, skip/],
    [
      { flags: { groupMaxSessionTimeoutMs: '10s' } },
      /45s is outside groupMinSessionTimeoutMs to groupMaxSessionTimeoutMs, 6s to 10s/,
    ],
    [{ flags: { groupSessionTimeoutMs: '1s' } }, /1s is outside .* 6s to 30m/],
  ])('refuse %j and name the culprit', (from, message) => {
    expect(() => parseConfig(from)).toThrow(message)
  })

  it('let variables pass that others set', () => {
    const environment = {
      MILLRACE_SERVER: 'x',
      MILLRACE_SERVICE_HOST: '10.0.0.1',
      MILLRACE_PORT_9292_TCP: 'tcp://10.0.0.1:9292',
      PATH: '/bin',
    }
    expect(() => parseConfig({ environment })).not.toThrow()
  })

  it('say what they take', () => {
    const ranges = Object.fromEntries(SETTINGS.map((row) => [row.key, describeRange(row)]))
    expect(ranges).toMatchObject({ maxMessageBytes: '64KiB to 16MiB', insecure: 'true, false' })
  })
})

describe('an address', () => {
  it.each([
    ['127.0.0.1:1', { host: '127.0.0.1', port: 1 }],
    ['[::1]:9292', { host: '::1', port: 9292 }],
    [':9292', { host: '0.0.0.0', port: 9292 }],
    ['localhost:0', { host: 'localhost', port: 0 }],
  ])('%s is read', (text, address) => {
    expect(parseAddress('listen', text)).toEqual(address)
  })

  it('is written as it is read', () => {
    expect(formatAddress({ host: '::1', port: 9 })).toBe('[::1]:9')
    expect(formatAddress({ host: 'a.b', port: 9 })).toBe('a.b:9')
  })
})
