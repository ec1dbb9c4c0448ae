// Reads values off the curves under the pointer. The page is complete without it.
const tip = document.createElement('div');
tip.className = 'tip';
tip.hidden = true;
document.body.append(tip);
const say = (value) => String(Number(value.toPrecision(5)));
for (const svg of document.querySelectorAll('svg[data-plot]')) {
  const [left, top, width, height, low, high] = svg.dataset.plot.split(' ').map(Number);
  // Drawn from the last to the first, so that the first lies on top.
  const lines = [...svg.querySelectorAll('.line')].reverse().map((line) => ({
    name: line.dataset.name,
    colour: line.classList[1],
    points: line.dataset.v.split(' ').filter(Boolean).map((pair) => pair.split(',').map(Number)),
  }));
  // The browser's own tool tip would cover the read-out.
  const title = svg.querySelector('title');
  svg.setAttribute('aria-label', title.textContent);
  svg.removeAttribute('aria-labelledby');
  title.remove();
  const cursor = document.createElementNS(svg.namespaceURI, 'path');
  cursor.setAttribute('class', 'cursor');
  svg.append(cursor);
  const hide = () => { tip.hidden = true; cursor.removeAttribute('d'); };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const want = low + ((at - left) / width) * (high - low);
    if (want < low - (high - low) * 0.02 || want > high + (high - low) * 0.02) return hide();
    const near = (points) => points.reduce((a, b) => (Math.abs(b[0] - want) < Math.abs(a[0] - want) ? b : a));
    const found = lines.filter((line) => line.points.length).map((line) => [line, near(line.points)]);
    const x = near(found.map(([, point]) => point))[0];
    const mark = left + ((x - low) / (high - low)) * width;
    cursor.setAttribute('d', `M${mark} ${top}v${height}`);
    const head = document.createElement('b');
    head.textContent = `${svg.dataset.x} ${say(x)}`;
    tip.replaceChildren(head);
    for (const [line, point] of found) {
      // A curve without a point here keeps silent, rather than lend one from elsewhere.
      if (Math.abs(point[0] - x) > (high - low) * 0.02) continue;
      const row = document.createElement('div');
      const text = document.createElement('span');
      row.className = line.colour;
      text.textContent = `${line.name} ${say(point[1])}`;
      row.append(document.createElement('i'), text);
      tip.append(row);
    }
    tip.hidden = false;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, room)) + window.scrollX}px`;
    tip.style.top = `${Math.max(0, event.clientY - tip.offsetHeight - 14) + window.scrollY}px`;
  };
  svg.addEventListener('pointermove', show);
  svg.addEventListener('pointerdown', show);
  svg.addEventListener('pointerleave', hide);
}
