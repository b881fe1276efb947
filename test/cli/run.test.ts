import { join } from 'node:path'
import { writeFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { runCommand } from '../support/cli-io.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'

describe('the command line without a broker', () => {
  it('prints help on stdout, and it names every command', async () => {
    const { code, out, err } = await runCommand(['--help'])
    expect(code).toBe(0)
    expect(err).toBe('')
    for (const name of [
      'serve',
      'topic',
      'group',
      'queue',
      'work',
      'produce',
      'tail',
      'dump',
      'health',
      'config',
      'version',
      'demo',
      'help',
    ]) {
      expect(out).toMatch(new RegExp(`^  ${name}\\b`, 'm'))
    }
  })

  it('prints help on stderr with code 2 when no command is given', async () => {
    for (const argv of [[], ['topic'], ['group'], ['queue'], ['config']]) {
      const { code, out, err } = await runCommand(argv)
      expect(code).toBe(2)
      expect(out).toBe('')
      expect(err).toContain('Usage: millrace')
    }
  })

  it('shows every setting as a flag in the help of serve', async () => {
    const { code, out } = await runCommand(['serve', '--help'])
    expect(code).toBe(0)
    expect(out).toContain('--max-message-bytes <bytes>')
    expect(out).toContain('--drain-timeout <duration>')
    expect(out).toContain('--print-config')
  })

  it.each([
    [['tial', 'x'], "unknown command 'tial'", 'did you mean tail?'],
    [['tail', 'x', '--grpe', 'y'], "unknown option '--grpe'", 'did you mean --grep?'],
    [['tail'], "missing required argument 'topic'", '--pattern'],
    [
      ['demo', 'log', 'groop'],
      'scene groop is none of log, groups, queues',
      'did you mean groups?',
    ],
    [['topic', 'crate', 'x'], "unknown command 'crate'", 'did you mean create?'],
    [
      ['tail', 'x', '-n', '10', '-f'],
      "'-f, --format <format>' argument missing",
      '-f is the format',
    ],
    [['tail', 'x', '-n', 'ten'], '--num ten is no count', undefined],
    [['tail', 'x', '-p', '1-'], '1- is no list of partitions', undefined],
    [['tail', 'x', '--idle', 'soon'], '--idle "soon" is not a duration', undefined],
    [['tail', 'x', '-f', 'jsn'], '"jsn" is no format', 'did you mean json?'],
    [['tail', 'x', '-f', '%q'], 'the format has no %q', 'it knows %t'],
    [['tail', 'x', '--grep', '('], '--grep ( is no regular expression', undefined],
    [['tail', 'x', '-o', '-3', '--since', '1h'], '--since and --offset', undefined],
    [['tail', 'x', '-o', ':end', '--until', 'end'], '--until contradicts', undefined],
    [['tail', 'x', '--exec', 'cat', '-f', 'raw'], '--exec and --format', undefined],
    [['tail', 'x', '--offsets', '-f', 'raw'], '--offsets has no format raw', undefined],
    [['produce', 'x', '--acks', 'all'], '--acks all is none of none, written, durable', undefined],
    [['produce', 'x', '-z', 'snappy'], '--compression snappy', undefined],
    [['produce', 'x', '--json', '-Z'], '--json and -Z', undefined],
    [['produce', 'x', '--keep-partition'], '--keep-partition goes with --json', undefined],
    [['produce', 'x', '-H', 'novalue'], '--header novalue is no pair', undefined],
    [['topic', 'create', 'x', '-p', '0'], '--partitions 0 is too small', undefined],
    [['topic', 'alter', 'x'], 'nothing to alter', '--set'],
    [['topic', 'list', '--format', 'yaml'], '--format yaml is none of text, json', undefined],
    [
      ['topic', 'delete-records', 'x'],
      "required option '-b, --before <position>' not specified",
      undefined,
    ],
    [['help', 'ofsets'], 'there is no help about ofsets', 'did you mean offsets?'],
    [
      ['serve', '--cache-byte', '1'],
      "unknown option '--cache-byte'",
      'did you mean --cache-bytes?',
    ],
    [['serve', '--listen', 'nowhere'], 'listen: "nowhere" is not an address', 'config list'],
    [['serve', '--cache-bytes', 'lots', '--print-config'], '"lots" is not a size', undefined],
  ])(
    'answers %j with one error line, a hint where there is one, and code 2',
    async (argv, message, hint) => {
      const { code, out, err } = await runCommand(argv)
      expect(code).toBe(2)
      expect(out).toBe('')
      const [first, second] = err.split('\n')
      expect(first).toMatch(/^error: /)
      expect(first).toContain(message)
      if (hint !== undefined) expect(second).toContain(hint)
      expect(err).not.toMatch(/^ +at /m)
    },
  )

  it('shows the whole grammar when a position cannot be read', async () => {
    const { code, err } = await runCommand(['tail', 'x', '-o', 'yesterday'])
    expect(code).toBe(2)
    expect(err).toMatch(/^error: "yesterday" is not a position/)
    expect(err).toContain('-10                 10 records before the end')
  })

  it('has a page about offsets, formats, groups, queues and examples, and help for commands', async () => {
    for (const page of ['offsets', 'formats', 'groups', 'queues', 'examples']) {
      const { code, out } = await runCommand(['help', page])
      expect(code).toBe(0)
      expect(out.length).toBeGreaterThan(500)
    }
    expect((await runCommand(['help', 'topic', 'create'])).out).toContain(
      'Usage: millrace topic create',
    )
    expect((await runCommand(['help'])).out).toContain('Usage: millrace ')
  })

  it('prints versions as text and as JSON', async () => {
    expect((await runCommand(['--version'])).out).toMatch(/^\d+\.\d+\.\d+\n$/)
    expect((await runCommand(['version'])).out).toMatch(/^lz4 {6}(lz4|lz4-napi|typescript)$/m)
    const { out } = await runCommand(['version', '--format', 'json'])
    expect(JSON.parse(out)).toMatchObject({
      node: process.version,
      zstd: expect.any(Boolean) as boolean,
    })
  })

  it('lists settings with value, source, default and range', async () => {
    const file = join(temporaryDirectory(), 'settings.json')
    await writeFile(file, '{"cacheBytes":"64MiB","openSegments":100}')
    const env = { MILLRACE_OPEN_SEGMENTS: '200' }
    const json = await runCommand(['config', 'list', '--config', file, '--format', 'json'], { env })
    expect(json.code).toBe(0)
    const { settings } = JSON.parse(json.out) as { settings: Record<string, string>[] }
    const byKey = new Map(settings.map((row) => [row['key'], row]))
    expect(byKey.get('cacheBytes')).toMatchObject({
      value: '64MiB',
      source: 'file',
      default: '256MiB',
    })
    expect(byKey.get('openSegments')).toMatchObject({ value: '200', source: 'environment' })
    expect((await runCommand(['config', 'list'])).out).toMatch(
      /^SETTING +VALUE +FROM +DEFAULT +RANGE +WHAT$/m,
    )
  })

  it('prints the configuration of serve: flag over environment over file over default', async () => {
    const file = join(temporaryDirectory(), 'settings.json')
    await writeFile(file, '{"listen":"127.0.0.1:1","cacheBytes":"1MiB","drainTimeoutMs":"1s"}')
    const { code, out } = await runCommand(
      ['serve', '--print-config', '--listen', '127.0.0.1:3', '--config', file],
      { env: { MILLRACE_LISTEN: '127.0.0.1:2', MILLRACE_CACHE_BYTES: '2MiB' } },
    )
    expect(code).toBe(0)
    expect(out).toMatch(/^listen +\S+? *127\.0\.0\.1:3 +\(flag\)$/m)
    expect(out).toMatch(/^cacheBytes += 2MiB +\(environment\)$/m)
    expect(out).toMatch(/^drainTimeoutMs += 1s +\(file\)$/m)
    expect(out).toMatch(/^openSegments += 512 +\(default\)$/m)
  })

  it('says so when the settings file is not there', async () => {
    const { code, err } = await runCommand([
      'serve',
      '--print-config',
      '--config',
      '/nowhere/x.json',
    ])
    expect(code).toBe(2)
    expect(err).toContain('the settings file /nowhere/x.json cannot be read: ENOENT')
  })

  it('says how to start a broker when there is none', async () => {
    const { code, out, err } = await runCommand([
      'health',
      '--server',
      '127.0.0.1:1',
      '--format',
      'json',
    ])
    expect(code).toBe(10)
    expect(err).toBe('')
    expect(JSON.parse(out)).toMatchObject({ healthy: false })
  })
})
