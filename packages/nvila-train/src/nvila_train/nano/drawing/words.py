"""The closed vocabulary that every drawing draws its words from.

Lists are short on purpose: a model of two million parameters learns to read letters, not to spell rare words.
Words stay at seven letters or fewer so that a line of a receipt fits a picture that is seen 192 pixels wide.
"""

from typing import Final


def _words(text: str) -> list[str]:
    return text.split()


ITEMS: Final = _words(
    "Tea Milk Bread Apple Cake Soup Rice Fish Salt Juice Pizza Pasta Salad Coffee Butter Cheese Honey "
    "Lemon Onion Pear Plum Bacon Candy Cocoa Corn Cream Grape Lamb Mango Melon Olive Peach Pie Sugar Toast "
    "Water Wine Yogurt Soap Book Pen Lamp Shirt Cup Bowl Rope"
)

NAMES: Final = _words(
    "Anna Ben Clara David Emma Felix Grace Hugo Iris Jack Kate Leo Maria Noah Olga Paul Quinn Rosa Sam Tina "
    "Umar Vera Will Xenia Yusuf Zoe Lena Omar Nina Karl"
)

CITIES: Final = _words(
    "Berlin Paris London Madrid Rome Oslo Vienna Dublin Prague Lisbon Athens Cairo Delhi Tokyo Seoul Lima "
    "Quito Boston Miami Denver Dallas Sydney Hanoi Kyiv Riga"
)

JOBS: Final = _words("Nurse Baker Pilot Farmer Driver Lawyer Artist Doctor Singer Tailor Waiter Welder")

MONTHS: Final = _words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")

DAYS: Final = _words("Mon Tue Wed Thu Fri Sat Sun")

SHOP_FIRST: Final = _words(
    "Blue Red Green Golden Happy Little Old New Royal Sunny Lucky Wild Quiet Silver Big Fresh Corner River Moon Star"
)

SHOP_SECOND: Final = _words(
    "Fox Bear Lion Owl Cat Dog Tree Leaf Rose Door Table Kitchen Market Bakery Cafe Shop Store Garden House Bar"
)

SIGN_WORDS: Final = _words(
    "EXIT OPEN CLOSED STOP SLOW PUSH PULL DANGER HOT COLD WET FLOOR PARK HERE ENTRY NO KEEP OUT LEFT RIGHT "
    "TAXI BUS TRAIN LIFT STAIRS TOILET OFFICE SALE FREE FOOD DRINKS WAY ONE ROAD WORK AHEAD QUIET PLEASE WAIT "
    "CASH ONLY STAFF PRIVATE SCHOOL ZONE BEACH FERRY HOTEL GATE ROOM MUSEUM LIBRARY"
)

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 38, 36),
    "orange": (245, 135, 20),
    "yellow": (246, 216, 40),
    "green": (40, 155, 62),
    "blue": (38, 88, 210),
    "purple": (132, 50, 168),
    "pink": (247, 140, 190),
    "black": (24, 24, 24),
    "white": (250, 250, 250),
}
"""Colour names and their sRGB centres; drawings jitter each channel a little."""

SHAPES: Final = ("circle", "square", "triangle", "star", "diamond", "cross")
"""Shape kinds that drawings use."""


NAMED: Final = frozenset(word.lower() for word in (*ITEMS, *NAMES, *CITIES, *JOBS, *MONTHS, *DAYS))
"""What questions name and pictures print, in lower case."""
