// Loads child.onnx, or what `?model=` names, and classifies pictures with it.
//
// The transform and the names of the classes are read from the file itself, where Offshoot writes them: offshoot.preprocess, offshoot.classes.

import * as ort from './node_modules/onnxruntime-web/dist/ort.wasm.min.mjs'

const $ = id => document.getElementById(id)

/** The metadata of an ONNX file by key: field 14 of its protobuf message, an entry each of key (1) and value (2). */
export function metadata(bytes) {
  const text = new TextDecoder()
  const fields = function* (from, to) {
    const varint = () => {
      let value = 0
      for (let scale = 1; ; scale *= 128) {
        const byte = bytes[from++]
        value += (byte & 127) * scale
        if (byte < 128) return value
      }
    }
    while (from < to) {
      const tag = varint()
      const number = Math.floor(tag / 8)
      switch (tag % 8) {
        case 0: varint(); break
        case 1: from += 8; break
        case 5: from += 4; break
        case 2: {
          const length = varint()
          yield { number, from, to: from + length }
          from += length
          break
        }
        default: throw new Error('this is no ONNX file')
      }
    }
  }
  const found = {}
  for (const entry of fields(0, bytes.length)) {
    if (entry.number !== 14) continue
    const pair = {}
    for (const { number, from, to } of fields(entry.from, entry.to)) pair[number] = text.decode(bytes.subarray(from, to))
    found[pair[1]] = pair[2]
  }
  return found
}

/** Draws a picture as the model is to see it: resized, and the middle cut out. A canvas has one filter, near bicubic. */
function draw(picture, { size: [height, width], crop_ratio: crop, resize }) {
  const canvas = $('seen')
  canvas.height = height
  canvas.width = width
  const context = canvas.getContext('2d', { willReadFrequently: true })
  context.imageSmoothingQuality = 'high'
  const [tall, wide] = [height / crop, width / crop]
  const scale = Math.max(tall / picture.height, wide / picture.width)
  const [h, w] = resize === 'square' ? [tall, wide] : [picture.height * scale, picture.width * scale]
  context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h)
  return context.getImageData(0, 0, width, height).data
}

/** Pixels as float32 [1, channels, height, width]. Grey is the luma of ITU-R BT.601, as Pillow has it. */
function tensor(pixels, { size: [height, width], channels, mean, std, channel_order: order }) {
  const plane = height * width
  const values = new Float32Array(channels * plane)
  for (let i = 0; i < plane; i++) {
    const [r, g, b] = pixels.subarray(4 * i, 4 * i + 3)
    const colours = channels === 1 ? [Math.round((299 * r + 587 * g + 114 * b) / 1000)] : order === 'bgr' ? [b, g, r] : [r, g, b]
    colours.forEach((value, c) => { values[c * plane + i] = (value / 255 - mean[c]) / std[c] })
  }
  return new ort.Tensor('float32', values, [1, channels, height, width])
}

function softmax(logits) {
  const most = Math.max(...logits)
  const powers = Array.from(logits, value => Math.exp(value - most))
  const sum = powers.reduce((a, b) => a + b)
  return powers.map(value => value / sum)
}

function show(shares, names) {
  const best = shares.map((share, i) => ({ share, name: names?.[i] ?? `class ${i}` })).sort((a, b) => b.share - a.share).slice(0, 3)
  $('answers').replaceChildren(...best.map(({ share, name }) => {
    const row = document.createElement('tr')
    const meter = Object.assign(document.createElement('meter'), { value: share })
    row.append(...[name, meter, `${(100 * share).toFixed(2)} %`].map(content => {
      const cell = document.createElement('td')
      cell.append(content)
      return cell
    }))
    return row
  }))
}

async function start() {
  const path = new URLSearchParams(location.search).get('model') ?? 'child.onnx'
  const answer = await fetch(path)
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`)
  const bytes = new Uint8Array(await answer.arrayBuffer())
  const { 'offshoot.preprocess': transform, 'offshoot.classes': classes } = metadata(bytes)
  if (!transform) throw new Error(`${path} does not say what pictures become: its metadata has no offshoot.preprocess`)
  const preprocess = JSON.parse(transform)
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'] })
  $('picture').onchange = async ({ target: { files: [file] } }) => {
    try {
      $('state').textContent = 'running'
      const input = tensor(draw(await createImageBitmap(file), preprocess), preprocess)
      const begun = performance.now()
      const outputs = await session.run({ [session.inputNames[0]]: input })
      const took = performance.now() - begun
      show(softmax(outputs[session.outputNames[0]].data), classes && JSON.parse(classes))
      $('state').textContent = `${file.name}: ${took.toFixed(1)} ms`
    } catch (error) {
      $('state').textContent = `failed: ${error.message}`
    }
  }
  $('state').textContent = 'ready: choose a picture'
}

start().catch(error => { $('state').textContent = `failed: ${error.message}` })
