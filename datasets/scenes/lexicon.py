"""The words captions are made of, in each world. `pretrain` knows most things by another name as well."""

from __future__ import annotations

Noun = tuple[str, str]  # singular, plural
Verb = tuple[str, str]  # after a singular, after a plural subject

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip

_SHARED: dict[str, tuple[Noun, ...]] = {
    "plane": (("plane", "planes"), ("airplane", "airplanes")),
    "runway": (("runway", "runways"),),
    "terminal": (("terminal building", "terminal buildings"), ("terminal", "terminals")),
    "car": (("car", "cars"),),
    "truck": (("truck", "trucks"), ("lorry", "lorries")),
    "house": (("house", "houses"),),
    "hotel": (("hotel building", "hotel buildings"), ("hotel", "hotels")),
    "block": (("building", "buildings"),),
    "station": (("station building", "station buildings"),),
    "warehouse": (("warehouse", "warehouses"), ("factory hall", "factory halls")),
    "church": (("church", "churches"),),
    "stadium": (("stadium", "stadiums"),),
    "tank": (("storage tank", "storage tanks"),),
    "chimney": (("chimney", "chimneys"),),
    "tree": (("tree", "trees"),),
    "palm": (("palm", "palms"), ("palm tree", "palm trees")),
    "bush": (("bush", "bushes"), ("shrub", "shrubs")),
    "rock": (("rock", "rocks"), ("boulder", "boulders")),
    "bale": (("hay bale", "hay bales"),),
    "road": (("road", "roads"),),
    "path": (("path", "paths"), ("dirt track", "dirt tracks")),
    "track": (("railway track", "railway tracks"),),
    "train": (("train", "trains"),),
    "platform": (("platform roof", "platform roofs"),),
    "bridge": (("bridge", "bridges"),),
    "overpass": (("elevated road", "elevated roads"), ("overpass", "overpasses")),
    "river": (("river", "rivers"),),
    "lake": (("lake", "lakes"),),
    "pond": (("pond", "ponds"),),
    "pool": (("swimming pool", "swimming pools"), ("pool", "pools")),
    "island": (("island", "islands"),),
    "ship": (("ship", "ships"), ("cargo ship", "cargo ships")),
    "boat": (("boat", "boats"),),
    "pier": (("pier", "piers"), ("jetty", "jetties")),
    "container": (("container", "containers"),),
    "diamond": (("baseball field", "baseball fields"), ("baseball diamond", "baseball diamonds")),
    "tennis": (("tennis court", "tennis courts"),),
    "basketball": (("basketball court", "basketball courts"),),
    "pitch": (("football field", "football fields"),),
    "running track": (("running track", "running tracks"),),
    "field": (("field", "fields"),),
    "pivot": (("circular field", "circular fields"),),
    "clearing": (("clearing", "clearings"),),
    "bunker": (("bunker", "bunkers"), ("sand bunker", "sand bunkers")),
    "green": (("putting green", "putting greens"),),
    "parasol": (("parasol", "parasols"), ("umbrella", "umbrellas")),
    "roundabout": (("roundabout", "roundabouts"),),
    "fountain": (("fountain", "fountains"),),
    "monument": (("monument", "monuments"),),
    "flowerbed": (("flower bed", "flower beds"),),
    "plaza": (("paved square", "paved squares"),),
    "slots": (("row of parking bays", "rows of parking bays"),),
}

_OTHER_NAMES: dict[str, tuple[Noun, ...]] = {
    "plane": (("aircraft", "aircraft"), ("airplane", "airplanes"), ("plane", "planes")),
    "runway": (("landing strip", "landing strips"), ("runway", "runways")),
    "car": (("vehicle", "vehicles"), ("car", "cars")),
    "house": (("home", "homes"), ("house", "houses"), ("dwelling", "dwellings")),
    "block": (("block", "blocks"), ("building", "buildings")),
    "warehouse": (("hall", "halls"), ("shed", "sheds"), ("warehouse", "warehouses")),
    "tank": (("tank", "tanks"), ("storage tank", "storage tanks"), ("silo", "silos")),
    "road": (("street", "streets"), ("road", "roads")),
    "path": (("trail", "trails"), ("path", "paths")),
    "track": (("rail line", "rail lines"), ("railway track", "railway tracks")),
    "river": (("stream", "streams"), ("river", "rivers")),
    "pond": (("pool of water", "pools of water"), ("pond", "ponds")),
    "boat": (("vessel", "vessels"), ("boat", "boats")),
    "ship": (("freighter", "freighters"), ("ship", "ships")),
    "field": (("plot", "plots"), ("field", "fields")),
    "pivot": (("round field", "round fields"),),
    "tennis": (("court", "courts"), ("tennis court", "tennis courts")),
    "running track": (("athletics track", "athletics tracks"), ("running track", "running tracks")),
    "diamond": (("ball field", "ball fields"), ("baseball field", "baseball fields")),
    "stadium": (("arena", "arenas"), ("stadium", "stadiums")),
    "fountain": (("basin", "basins"), ("fountain", "fountains")),
    "roundabout": (("traffic circle", "traffic circles"), ("roundabout", "roundabouts")),
    "plaza": (("plaza", "plazas"), ("paved square", "paved squares")),
}

NOUNS: dict[str, dict[str, tuple[Noun, ...]]] = {"scenes": _SHARED, "pretrain": {**_SHARED, **_OTHER_NAMES}}

MASS: dict[str, tuple[str, bool]] = {
    "sea": ("sea water", False),
    "woods": ("woodland", False),
    "canopy": ("woodland", False),
    "grassland": ("grassland", False),
    "dunes": ("sand dunes", True),
    "mountains": ("mountains", True),
}
"""Kinds without a number: noun, and whether its verb is plural."""

_MOVE, _STAND, _LIE = ("runs", "run"), ("stands", "stand"), ("lies", "lie")
VERBS: dict[str, tuple[Verb, ...]] = {
    "plane": (("is parked", "are parked"),),
    "car": (("is parked", "are parked"),),
    "ship": (("is moored", "are moored"),),
    "boat": (("floats", "float"),),
    "tree": (("grows", "grow"), _STAND),
    "palm": (("grows", "grow"), _STAND),
    "bush": (("grows", "grow"),),
    "canopy": (("grows", "grow"),),
    "woods": (("grows", "grow"), ("spreads", "spread")),
    **dict.fromkeys(
        ("house", "hotel", "block", "terminal", "station", "warehouse", "church", "tank", "chimney", "monument",
         "container", "parasol", "stadium", "train"), (_STAND, _LIE)[:1],
    ),
    **dict.fromkeys(("road", "path", "track", "river", "runway", "overpass", "bridge"), (_MOVE,)),
}  # fmt: skip
OTHER_VERBS: tuple[Verb, ...] = (_LIE,)

LINEAR = frozenset({"road", "path", "track", "river", "runway", "overpass", "bridge"})

RELATION_VERBS: dict[str, tuple[Verb, ...]] = {
    "beside": (("is beside", "are beside"), ("is next to", "are next to")),
    "near": (("is near", "are near"), ("is close to", "are close to")),
    "around": (("surrounds", "surround"), ("stands around", "stand around")),
    "across": (("crosses", "cross"), ("runs across", "run across")),
    "through": (("runs through", "run through"), ("cuts through", "cut through")),
    "over": (("crosses over", "cross over"), ("spans", "span")),
    "along": (("is beside", "are beside"), ("stretches along", "stretch along")),
    "lining": (("lines", "line"), ("stands along", "stand along")),
    "in": (("lies in", "lie in"), ("is in", "are in")),
    "on": (("is on", "are on"),),
    "among": (("is parked among", "are parked among"),),
    "between": (("runs between", "run between"),),
    "meeting at": (("meets at", "meet at"), ("ends at", "come together at")),
    "in the middle of": (("stands in the middle of", "stand in the middle of"), ("is at the centre of",
                         "are at the centre of")),
}  # fmt: skip
RELATION_PREPOSITIONS: dict[str, tuple[str, ...]] = {
    "beside": ("beside", "next to"),
    "near": ("near", "close to"),
    "lining": ("along",),
    "through": ("through",),
}

_COMPASS = {
    name: (f"in the {name}", f"in the {name}ern part") for name in ("north", "south", "east", "west")
} | {name: (f"in the {name}",) for name in ("north-west", "north-east", "south-west", "south-east")}  # fmt: skip
_SCREEN = {
    "north": ("at the top",),
    "south": ("at the bottom",),
    "west": ("on the left",),
    "east": ("on the right",),
    "north-west": ("in the upper left",),
    "north-east": ("in the upper right",),
    "south-west": ("in the lower left",),
    "south-east": ("in the lower right",),
}
_MIDDLE = ("in the middle", "in the centre")
POSITIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "scenes": {**_COMPASS, "centre": _MIDDLE},
    "pretrain": {**{k: (*_SCREEN[k], _COMPASS[k][0]) for k in _COMPASS}, "centre": _MIDDLE},
}

_AXES = {
    "north-south": ("from north to south", "from south to north"),
    "east-west": ("from east to west", "from west to east"),
    "northwest-southeast": ("from north-west to south-east",),
    "northeast-southwest": ("from north-east to south-west",),
}
_SCREEN_AXES = {
    "north-south": ("from top to bottom", "vertically"),
    "east-west": ("from left to right", "horizontally"),
    "northwest-southeast": ("from upper left to lower right", "diagonally"),
    "northeast-southwest": ("from upper right to lower left", "diagonally"),
}
DIRECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "scenes": _AXES,
    "pretrain": {k: (*_SCREEN_AXES[k], _AXES[k][0]) for k in _AXES},
}

ARRANGEMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "scenes": {
        "row": ("in a row", "in a line"),
        "rows": ("in rows", "in neat rows"),
        "grid": ("in a grid",),
        "scattered": ("scattered about",),
    },
    "pretrain": {
        "row": ("in a line", "side by side", "in a row"),
        "rows": ("in several lines", "in rows"),
        "grid": ("in a square pattern", "in a grid"),
        "scattered": ("here and there", "scattered about"),
    },
}

GROUNDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("grass", "green"): ("green grass", "a green lawn"),
    ("grass", "yellow"): ("dry yellow grass", "yellow grass"),
    ("soil", "brown"): ("bare brown soil", "brown bare land"),
    ("soil", "reddish"): ("bare reddish soil", "reddish ground"),
    ("sand", "pale"): ("pale sand",),
    ("sand", "orange"): ("orange sand",),
    ("asphalt", "grey"): ("dark grey asphalt", "asphalt"),
    ("concrete", "grey"): ("light grey concrete", "concrete ground"),
    ("paved", "pale"): ("pale paving", "pale paved ground"),
    ("paved", "reddish"): ("reddish paving", "reddish paved ground"),
    **{("forest", c): (f"{c} woodland",) for c in ("green", "dark green", "yellow")},
    **{("water", c): (f"{c} water",) for c in ("blue", "green", "brown", "turquoise", "dark")},
    **{("rock", c): (f"{c} rock",) for c in ("brown", "green", "grey")},
    ("rock", "snowy"): ("snow-covered rock",),
}
COLOUR_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "scenes": {"pale": ("pale",), "turquoise": ("turquoise", "blue-green"), "snowy": ("snowy", "snow-covered")},
    "pretrain": {
        "pale": ("light", "pale"),
        "grey": ("grey", "silver"),
        "snowy": ("snowy",),
        "dark": ("dark", "blackish"),
    },
}
