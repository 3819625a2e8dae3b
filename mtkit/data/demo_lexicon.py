"""The lexicon of the demo corpus: a few hundred words in both languages, and who does what to what.

The tables read like a pocket dictionary: `scarf, scarves = der Schal, Schals` for a noun, the principal parts
`write, wrote, written` and `schreiben, schreibt, geschrieben` for a verb; what is regular is left out. A
sentence of one language determines the sentence of the other: where two English words share a German one
(tall and big, wear and carry), the classes of the nouns beside them tell them apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mtkit.data.demo_grammar import (
    ACCUSATIVE,
    DATIVE,
    FEMININE,
    HAVE,
    MASCULINE,
    NEUTER,
    PLURAL,
    Adjective,
    Case,
    Noun,
    Phrase,
    Role,
    Verb,
    clock_time,
    english_comparative,
    english_plural,
    german_dative_plural,
    name,
    number,
    verb,
)

# ------------------------------------------------------------------------------------ how to read the tables

_GENDERS = {"der": MASCULINE, "die": FEMININE, "das": NEUTER}


def _entries(table: str) -> Iterator[tuple[list[str], list[str]]]:
    """The entries `a, b = c, d` of a table, between semicolons or line ends, as ([a, b], [c, d])."""
    for entry in table.strip().replace("\n", ";").split(";"):
        english, german = entry.split(" = ")
        yield [part.strip() for part in english.split(",")], [part.strip() for part in german.split(",")]


def phrases(table: str) -> tuple[Phrase, ...]:
    """Reads entries `english = german`."""
    return tuple(Phrase(english[0], german[0]) for english, german in _entries(table))


def adjectives(table: str) -> tuple[Adjective, ...]:
    """Reads entries `english = german[, comparative[, stem]]`."""

    def build(en: str, de: str, de_more: str = "", stem: str = "") -> Adjective:
        base = de.removesuffix("e")
        return Adjective(en, english_comparative(en), de, stem or base, de_more or base + "er")

    return tuple(build(english[0], *german) for english, german in _entries(table))


def nouns(adjectives: tuple[Adjective, ...], role: Role, table: str) -> tuple[Noun, ...]:
    """Reads entries `english[, plural] = article german[, plural[, singular after the nominative]]`.

    A noun without a German plural has none in English; plural-only nouns are written `parents = Eltern`.
    """

    def build(english: list[str], german: list[str]) -> Noun:
        article, _, de = german[0].rpartition(" ")
        singular = plural = ("", "", "")
        en, en_plural = english[0], ""
        if article:
            oblique = german[2] if len(german) > 2 else de
            singular = (de, oblique, oblique)
        if not article or len(german) > 1:
            de_plural = german[1] if article else de
            plural = (de_plural, de_plural, german_dative_plural(de_plural))
            en_plural = english[1] if len(english) > 1 else english_plural(en)
        if not article:
            en, en_plural = "", english[0]
        return Noun(de, en, en_plural, _GENDERS.get(article, PLURAL), singular, plural, adjectives, role)

    return tuple(build(english, german) for english, german in _entries(table))


# --------------------------------------------------------------------------- the adjectives, by what they fit

_FUR_COLOURS = adjectives("black = schwarz; white = weiß; brown = braun; grey = grau")
_BRIGHT_COLOURS = adjectives("red = rot; blue = blau; green = grün; yellow = gelb")
COLOURS = (*_FUR_COLOURS, *_BRIGHT_COLOURS)
_AGE = adjectives("new = neu; old = alt, älter")
_SIZE = adjectives("big = groß, größer; small = klein")
_PRICE = adjectives("expensive = teuer, teurer, teur; cheap = billig")
_LOOKS = adjectives("beautiful = schön; ugly = hässlich; modern = modern")
TEMPERATURES = adjectives("cold = kalt, kälter; warm = warm, wärmer; hot = heiß")
TRAITS = adjectives("""
    young = jung, jünger; old = alt, älter; tall = groß, größer; friendly = freundlich; nice = nett
    clever = klug, klüger; famous = berühmt; strong = stark, stärker; rich = reich; poor = arm, ärmer
    polite = höflich; funny = lustig; honest = ehrlich; lazy = faul; brave = mutig; patient = geduldig
    curious = neugierig
""")
_KIN_ADJECTIVES = tuple(trait for trait in TRAITS if trait.en not in ("old", "young"))
_CHILD_ADJECTIVES = tuple(trait for trait in TRAITS if trait.en not in ("old", "rich", "famous"))
EMOTIONS = adjectives("""
    happy = glücklich; sad = traurig; angry = wütend; nervous = nervös; proud = stolz; worried = besorgt
    satisfied = zufrieden; disappointed = enttäuscht; surprised = überrascht
""")
WEAKNESSES = adjectives("tired = müde; ill = krank; hungry = hungrig")
COMPARED = (*_AGE, *_PRICE, *adjectives("beautiful = schön; ugly = hässlich"))

_ANIMAL_ADJECTIVES = (
    *_SIZE,
    *_FUR_COLOURS,
    *adjectives("young = jung; hungry = hungrig; tired = müde; fat = dick; fast = schnell; wild = wild"),
)
_FOOD_ADJECTIVES = (*_PRICE, *adjectives("fresh = frisch; good = gut; tasty = lecker"))
_DISH_ADJECTIVES = (*_FOOD_ADJECTIVES, *adjectives("cold = kalt; warm = warm"))
_COLD_DRINK_ADJECTIVES = (*_PRICE, *adjectives("good = gut; cold = kalt; fresh = frisch"))
_HOT_DRINK_ADJECTIVES = (*_COLD_DRINK_ADJECTIVES, *adjectives("hot = heiß; strong = stark"))
_EVENT_ADJECTIVES = adjectives("""
    interesting = interessant; boring = langweilig; important = wichtig; long = lang; short = kurz
""")
_TEXT_ADJECTIVES = (*_EVENT_ADJECTIVES, *_AGE, *adjectives("exciting = spannend; good = gut"))
_IDEA_ADJECTIVES = adjectives("""
    difficult = schwierig; easy = einfach; important = wichtig; interesting = interessant
    strange = seltsam; new = neu; good = gut
""")
_GARMENT_ADJECTIVES = (*COLOURS, *_AGE, *_PRICE, *_LOOKS, *adjectives("warm = warm"))
_THING_ADJECTIVES = (*COLOURS, *_AGE, *_PRICE, *_SIZE, *_LOOKS)
_CONTAINER_ADJECTIVES = (*COLOURS, *_AGE, *_SIZE, *adjectives("heavy = schwer; light = leicht"))
_MACHINE_ADJECTIVES = (*_AGE, *_PRICE, *_SIZE, *adjectives("modern = modern; loud = laut"))
_VEHICLE_ADJECTIVES = (*COLOURS, *_AGE, *_PRICE, *adjectives("fast = schnell; modern = modern"))
_PLAIN_ADJECTIVES = (*_AGE, *_PRICE, *_LOOKS, *_SIZE)
_SIGHT_ADJECTIVES = (*_AGE, *_SIZE, *adjectives("beautiful = schön; famous = berühmt"))
_ROOM_ADJECTIVES = (*_AGE, *_SIZE, *adjectives("beautiful = schön; quiet = ruhig"))
_BUILDING_ADJECTIVES = (*_ROOM_ADJECTIVES, *adjectives("modern = modern"))

# What there can be too much of, and what there cannot be much of.
TOO_MUCH = frozenset(
    [
        "big",
        "small",
        "expensive",
        "heavy",
        "old",
        "cold",
        "hot",
        "warm",
        "loud",
        "long",
        "short",
        "difficult",
        "strong",
    ]
)
ABSOLUTE = frozenset(("surprised", "fresh", "wild", *(colour.en for colour in COLOURS)))

# ------------------------------------------------------------------------------------------------ the nouns

KIN = nouns(
    _KIN_ADJECTIVES,
    "kin",
    """
    brother = der Bruder, Brüder; sister = die Schwester, Schwestern; father = der Vater
    mother = die Mutter; son = der Sohn, Söhne; daughter = die Tochter, Töchter; uncle = der Onkel, Onkel
    aunt = die Tante, Tanten; grandfather = der Großvater; grandmother = die Großmutter
    nephew = der Neffe, Neffen, Neffen; niece = die Nichte, Nichten; parents = Eltern
    grandparents = Großeltern; friend = der Freund, Freunde; neighbour = der Nachbar, Nachbarn, Nachbarn
    colleague = der Kollege, Kollegen, Kollegen; boss = der Chef
    """,
)
CHILDREN = nouns(
    _CHILD_ADJECTIVES,
    "person",
    "child, children = das Kind, Kinder; boy = der Junge, Jungen, Jungen; girl = das Mädchen, Mädchen",
)
ADULTS = nouns(
    TRAITS,
    "person",
    """
    man, men = der Mann, Männer; woman, women = die Frau, Frauen; teacher = der Lehrer, Lehrer
    doctor = der Arzt, Ärzte; student = der Student, Studenten, Studenten; baker = der Bäcker, Bäcker
    driver = der Fahrer, Fahrer; policeman, policemen = der Polizist, Polizisten, Polizisten
    nurse = die Krankenschwester, Krankenschwestern; waiter = der Kellner, Kellner
    lawyer = der Anwalt, Anwälte; engineer = der Ingenieur, Ingenieure; farmer = der Bauer, Bauern, Bauern
    customer = der Kunde, Kunden, Kunden; tourist = der Tourist, Touristen, Touristen
    artist = der Künstler, Künstler; painter = der Maler, Maler; singer = der Sänger, Sänger
    musician = der Musiker, Musiker; professor = der Professor, Professoren
    pilot = der Pilot, Piloten, Piloten; gardener = der Gärtner, Gärtner
    journalist = der Journalist, Journalisten, Journalisten; guest = der Gast, Gäste
    secretary = die Sekretärin, Sekretärinnen
    """,
)
PEOPLE = (*CHILDREN, *ADULTS)
PERSONS = (*KIN, *PEOPLE)
SINGLE_KIN = tuple(noun for noun in KIN if noun.en)
USUAL_AGE = (20, 59)
AGES = {"father": (45, 64), "mother": (45, 64), "grandfather": (65, 95), "grandmother": (65, 95)}

_PETS = nouns(
    _ANIMAL_ADJECTIVES,
    "thing",
    """
    dog = der Hund, Hunde; cat = die Katze, Katzen; rabbit = das Kaninchen, Kaninchen
    horse = das Pferd, Pferde
    """,
)
_FARM_ANIMALS = nouns(
    _ANIMAL_ADJECTIVES,
    "thing",
    """
    cow = die Kuh, Kühe; pig = das Schwein, Schweine; duck = die Ente, Enten; chicken = das Huhn, Hühner
    goat = die Ziege, Ziegen
    """,
)
_WILD_ANIMALS = nouns(
    _ANIMAL_ADJECTIVES,
    "public",
    """
    bird = der Vogel, Vögel; mouse, mice = die Maus, Mäuse; bear = der Bär, Bären, Bären
    lion = der Löwe, Löwen, Löwen; fox = der Fuchs, Füchse
    """,
)
_TAME_ANIMALS = (*_PETS, *_FARM_ANIMALS)
_ANIMALS = (*_TAME_ANIMALS, *_WILD_ANIMALS)

_FRUIT = nouns(
    _FOOD_ADJECTIVES,
    "thing",
    """
    apple = der Apfel, Äpfel; pear = die Birne, Birnen; banana = die Banane, Bananen
    orange = die Orange, Orangen; tomato, tomatoes = die Tomate, Tomaten; carrot = die Karotte, Karotten
    biscuit = der Keks, Kekse
    """,
)
_DISHES = nouns(
    _DISH_ADJECTIVES,
    "thing",
    """
    egg = das Ei, Eier; potato, potatoes = die Kartoffel, Kartoffeln; sausage = die Wurst, Würste
    soup = die Suppe, Suppen
    """,
)
_CAKES = nouns(
    _DISH_ADJECTIVES,
    "thing",
    "cake = der Kuchen, Kuchen; pizza = die Pizza, Pizzen; bread roll = das Brötchen, Brötchen",
)
_BREAD = nouns(_FOOD_ADJECTIVES, "mass", "bread = das Brot")
_GROCERIES = nouns(
    _FOOD_ADJECTIVES,
    "mass",
    """
    cheese = der Käse; meat = das Fleisch; rice = der Reis; fish = der Fisch; butter = die Butter
    chocolate = die Schokolade; ham = der Schinken; jam = die Marmelade; honey = der Honig
    fruit = das Obst
    """,
)
_HOT_DRINKS = nouns(_HOT_DRINK_ADJECTIVES, "mass", "coffee = der Kaffee; tea = der Tee")
_COLD_DRINKS = nouns(
    _COLD_DRINK_ADJECTIVES,
    "mass",
    """
    water = das Wasser; milk = die Milch; juice = der Saft; beer = das Bier; wine = der Wein
    lemonade = die Limonade
    """,
)
_BAKED = (*_CAKES, *_BREAD)
_DRINKS = (*_HOT_DRINKS, *_COLD_DRINKS)
_FOOD = (*_FRUIT, *_DISHES, *_BAKED, *_GROCERIES)
_EDIBLES = (*_FOOD, *_DRINKS)

_BOOKS = nouns(
    _TEXT_ADJECTIVES,
    "thing",
    """
    book = das Buch, Bücher; newspaper = die Zeitung, Zeitungen; novel = der Roman, Romane
    magazine = die Zeitschrift, Zeitschriften
    """,
)
_WRITINGS = nouns(
    _TEXT_ADJECTIVES,
    "thing",
    """
    letter = der Brief, Briefe; poem = das Gedicht, Gedichte; article = der Artikel, Artikel
    report = der Bericht, Berichte; message = die Nachricht, Nachrichten; text = der Text, Texte
    postcard = die Postkarte, Postkarten
    """,
)
_STORIES = nouns(
    _TEXT_ADJECTIVES,
    "thing",
    """
    story = die Geschichte, Geschichten; joke = der Witz, Witze; fairy tale = das Märchen, Märchen
    """,
)
_TEXTS = (*_BOOKS, *_WRITINGS, *_STORIES)
_SONG = nouns(_TEXT_ADJECTIVES, "thing", "song = das Lied, Lieder")
_FILM = nouns(_TEXT_ADJECTIVES, "thing", "film = der Film, Filme")
_EXERCISES = nouns(
    _IDEA_ADJECTIVES,
    "thing",
    "answer = die Antwort, Antworten; exercise = die Übung, Übungen; sentence = der Satz, Sätze",
)
_TERMS = nouns(
    _IDEA_ADJECTIVES,
    "thing",
    "question = die Frage, Fragen; word = das Wort, Wörter; rule = die Regel, Regeln",
)
_THOUGHTS = nouns(
    _IDEA_ADJECTIVES,
    "thing",
    "problem = das Problem, Probleme; plan = der Plan, Pläne; idea = die Idee, Ideen",
)
_IDEAS = (*_EXERCISES, *_TERMS, *_THOUGHTS)
_LANGUAGES = nouns(
    (),
    "language",
    """
    German = das Deutsch; English = das Englisch; French = das Französisch; Spanish = das Spanisch
    Italian = das Italienisch; Polish = das Polnisch
    """,
)
EVENTS = nouns(
    _EVENT_ADJECTIVES,
    "public",
    """
    concert = das Konzert, Konzerte; course = der Kurs, Kurse; party = die Feier, Feiern
    exam = die Prüfung, Prüfungen; lecture = die Vorlesung, Vorlesungen
    exhibition = die Ausstellung, Ausstellungen; conference = die Konferenz, Konferenzen
    meeting = die Besprechung, Besprechungen
    """,
)

_CLOTHES = nouns(
    _GARMENT_ADJECTIVES,
    "thing",
    """
    coat = der Mantel, Mäntel; shirt = das Hemd, Hemden; dress = das Kleid, Kleider
    skirt = der Rock, Röcke; jacket = die Jacke, Jacken; hat = der Hut, Hüte; cap = die Mütze, Mützen
    scarf, scarves = der Schal, Schals; blouse = die Bluse, Blusen; suit = der Anzug, Anzüge
    shoes = Schuhe; boots = Stiefel
    """,
)
_TOOLS = nouns(
    _THING_ADJECTIVES,
    "thing",
    """
    key = der Schlüssel, Schlüssel; watch = die Uhr, Uhren; ring = der Ring, Ringe; ball = der Ball, Bälle
    knife, knives = das Messer, Messer; fork = die Gabel, Gabeln; spoon = der Löffel, Löffel
    wallet = die Brieftasche, Brieftaschen; camera = die Kamera, Kameras; pillow = das Kissen, Kissen
    pencil = der Bleistift, Bleistifte; umbrella = der Regenschirm, Regenschirme
    """,
)
_PICTURES = nouns(_PLAIN_ADJECTIVES, "thing", "picture = das Bild, Bilder; photo = das Foto, Fotos")
_SMALL_THINGS = (*_TOOLS, *_PICTURES)
_VESSELS = nouns(
    _THING_ADJECTIVES,
    "thing",
    """
    cup = die Tasse, Tassen; glass = das Glas, Gläser; plate = der Teller, Teller; vase = die Vase, Vasen
    bottle = die Flasche, Flaschen; candle = die Kerze, Kerzen
    """,
)
_PLANTS = nouns(
    (*_BRIGHT_COLOURS, *_SIZE), "thing", "flower = die Blume, Blumen; plant = die Pflanze, Pflanzen"
)
_PRESENTS = nouns(
    _CONTAINER_ADJECTIVES, "thing", "present = das Geschenk, Geschenke; parcel = das Paket, Pakete"
)
_BAGS = nouns(
    _CONTAINER_ADJECTIVES,
    "thing",
    """
    suitcase = der Koffer, Koffer; bag = die Tasche, Taschen; box = die Kiste, Kisten
    basket = der Korb, Körbe
    """,
)
_DEVICES = nouns(
    _MACHINE_ADJECTIVES,
    "thing",
    """
    lamp = die Lampe, Lampen; radio = das Radio, Radios; computer = der Computer, Computer
    television = der Fernseher, Fernseher; printer = der Drucker, Drucker; oven = der Ofen, Öfen
    washing machine = die Waschmaschine, Waschmaschinen; fridge = der Kühlschrank, Kühlschränke
    """,
)
_VEHICLES = nouns(
    _VEHICLE_ADJECTIVES,
    "thing",
    """
    car = das Auto, Autos; bicycle = das Fahrrad, Fahrräder; motorbike = das Motorrad, Motorräder
    boat = das Boot, Boote; lorry = der Lastwagen, Lastwagen
    """,
)
TRAIN_AND_BUS = nouns(_VEHICLE_ADJECTIVES, "public", "train = der Zug, Züge; bus = der Bus, Busse")
_FURNITURE = nouns(
    _PLAIN_ADJECTIVES,
    "thing",
    """
    table = der Tisch, Tische; chair = der Stuhl, Stühle; bed = das Bett, Betten; sofa = das Sofa, Sofas
    armchair = der Sessel, Sessel; cupboard = der Schrank, Schränke
    shelf, shelves = das Regal, Regale; desk = der Schreibtisch, Schreibtische
    carpet = der Teppich, Teppiche
    """,
)
_OPENINGS = nouns(
    (*_AGE, *_SIZE),
    "room",
    "door = die Tür, Türen; window = das Fenster, Fenster; drawer = die Schublade, Schubladen",
)
_ROOMS = nouns(
    _ROOM_ADJECTIVES,
    "room",
    """
    kitchen = die Küche; living room = das Wohnzimmer; bedroom = das Schlafzimmer
    bathroom = das Badezimmer; cellar = der Keller; garage = die Garage
    """,
)
_HOMES = nouns(_BUILDING_ADJECTIVES, "thing", "house = das Haus, Häuser; flat = die Wohnung, Wohnungen")
SIGHTS = nouns(
    _SIGHT_ADJECTIVES,
    "public",
    """
    museum = das Museum, Museen; castle = das Schloss, Schlösser; church = die Kirche, Kirchen
    tower = der Turm, Türme; bridge = die Brücke, Brücken
    """,
)
PUBLIC_PLACES = nouns(
    _BUILDING_ADJECTIVES,
    "public",
    """
    cinema = das Kino, Kinos; theatre = das Theater, Theater; school = die Schule, Schulen
    library = die Bibliothek, Bibliotheken; restaurant = das Restaurant, Restaurants
    café = das Café, Cafés; hotel = das Hotel, Hotels; supermarket = der Supermarkt, Supermärkte
    bakery = die Bäckerei, Bäckereien; bank = die Bank, Banken; factory = die Fabrik, Fabriken
    stadium = das Stadion, Stadien; swimming pool = das Schwimmbad, Schwimmbäder
    university = die Universität, Universitäten; hospital = das Krankenhaus, Krankenhäuser
    """,
)

# Things that lie, and things that stand: German says which, English does not.
LYING_THINGS = (*_SMALL_THINGS, *_BOOKS, *_CLOTHES)
STANDING_THINGS = _VESSELS
_PORTABLE = (*_SMALL_THINGS, *_BAGS, *_BOOKS, *_PRESENTS)
_OPENABLE = (*_OPENINGS, *_BAGS, *_PRESENTS)
CHEAP_GOODS = (*_CLOTHES, *_SMALL_THINGS, *_VESSELS, *_BAGS, *_BOOKS)
DEAR_GOODS = (*_DEVICES, *_VEHICLES, *_FURNITURE)
GOODS = (*CHEAP_GOODS, *DEAR_GOODS)
THINGS = (*GOODS, *_EDIBLES, *_TEXTS, *_IDEAS, *_ROOMS, *_HOMES, *SIGHTS, *PUBLIC_PLACES)
COMPARABLE = (_CLOTHES, _DEVICES, _VEHICLES, _FURNITURE, _BOOKS, _BAGS, _HOMES, SIGHTS)

# ----------------------------------------------------------------------------- names, professions and places

NAMES = (
    *(name(en, FEMININE) for en in ("Anna", "Maria", "Julia", "Lena", "Sarah", "Emma", "Clara", "Laura")),
    *(name(en, MASCULINE) for en in ("Paul", "Peter", "Thomas", "Max", "Felix", "Jonas", "Daniel", "Martin")),
)


class Profession(NamedTuple):
    """What somebody is; German says it differently of a woman."""

    en: str
    de: str
    feminine: str


PROFESSIONS = tuple(
    Profession(english[0], *german)
    for english, german in _entries("""
    teacher = Lehrer, Lehrerin; doctor = Arzt, Ärztin; student = Student, Studentin
    baker = Bäcker, Bäckerin; lawyer = Anwalt, Anwältin; engineer = Ingenieur, Ingenieurin
    artist = Künstler, Künstlerin; painter = Maler, Malerin; singer = Sänger, Sängerin
    musician = Musiker, Musikerin; professor = Professor, Professorin; pilot = Pilot, Pilotin
    gardener = Gärtner, Gärtnerin; journalist = Journalist, Journalistin
    """)
)
PROFESSION_ADJECTIVES = adjectives("""
    good = gut; bad = schlecht; famous = berühmt; young = jung; experienced = erfahren
""")


class Place(NamedTuple):
    """A place to be at, and to go to."""

    at: Phrase
    to: Phrase


_PLACES = {
    to.removeprefix("to ").removeprefix("the "): Place(Phrase(at, de_at), Phrase(to, de_to))
    for (at, to), (de_at, de_to) in _entries("""
    in the kitchen, to the kitchen = in der Küche, in die Küche
    in the living room, to the living room = im Wohnzimmer, ins Wohnzimmer
    in the bedroom, to the bedroom = im Schlafzimmer, ins Schlafzimmer
    in the garage, to the garage = in der Garage, in die Garage
    in the garden, to the garden = im Garten, in den Garten
    in the park, to the park = im Park, in den Park
    in the forest, to the forest = im Wald, in den Wald
    in the city, to the city = in der Stadt, in die Stadt
    in the village, to the village = im Dorf, ins Dorf
    in the restaurant, to the restaurant = im Restaurant, ins Restaurant
    in the café, to the café = im Café, ins Café
    in the hotel, to the hotel = im Hotel, ins Hotel
    in the museum, to the museum = im Museum, ins Museum
    in the church, to the church = in der Kirche, in die Kirche
    in the supermarket, to the supermarket = im Supermarkt, in den Supermarkt
    in the library, to the library = in der Bibliothek, in die Bibliothek
    in the hospital, to the hospital = im Krankenhaus, ins Krankenhaus
    in the factory, to the factory = in der Fabrik, in die Fabrik
    in the stadium, to the stadium = im Stadion, ins Stadion
    in the lake, to the lake = im See, zum See
    at the cinema, to the cinema = im Kino, ins Kino
    at the theatre, to the theatre = im Theater, ins Theater
    at the office, to the office = im Büro, ins Büro
    at the swimming pool, to the swimming pool = im Schwimmbad, ins Schwimmbad
    at the school, to the school = in der Schule, zur Schule
    at the bakery, to the bakery = in der Bäckerei, zur Bäckerei
    at the bank, to the bank = in der Bank, zur Bank
    at the university, to the university = an der Universität, zur Universität
    at the station, to the station = am Bahnhof, zum Bahnhof
    at the airport, to the airport = am Flughafen, zum Flughafen
    at the bus stop, to the bus stop = an der Bushaltestelle, zur Bushaltestelle
    on the beach, to the beach = am Strand, zum Strand
    at the market, to the market = auf dem Markt, zum Markt
    at home, home = zu Hause, nach Hause
    """)
}


def _at(names: str) -> tuple[Phrase, ...]:
    return tuple(_PLACES[name].at for name in names.split(", "))


def _to(names: str) -> tuple[Phrase, ...]:
    return tuple(_PLACES[name].to for name in names.split(", "))


_CITIES = phrases("""
    Berlin = Berlin; Hamburg = Hamburg; Munich = München; Cologne = Köln; Vienna = Wien; Zurich = Zürich
    Paris = Paris; Rome = Rom; Prague = Prag; Warsaw = Warschau; Brussels = Brüssel; Lisbon = Lissabon
""")
_COUNTRIES = phrases("""
    Germany = Deutschland; Austria = Österreich; France = Frankreich; Italy = Italien; Spain = Spanien
    Poland = Polen; Greece = Griechenland; Norway = Norwegen
""")
AT_CITIES = tuple(Phrase(f"in {en}", f"in {de}") for en, de in _CITIES)
TO_CITIES = tuple(Phrase(f"to {en}", f"nach {de}") for en, de in _CITIES)
FROM_CITIES = tuple(Phrase(f"from {en}", f"aus {de}") for en, de in _CITIES)
_TO_COUNTRIES = tuple(Phrase(f"to {en}", f"nach {de}") for en, de in _COUNTRIES)
_FROM_COUNTRIES = tuple(Phrase(f"from {en}", f"aus {de}") for en, de in _COUNTRIES)


class Spot(NamedTuple):
    """Where in a room something can be: on a table, in a bag."""

    preposition: Phrase
    nouns: tuple[Noun, ...]


_COMMON_SPOTS = (
    Spot(Phrase("on", "auf"), _FURNITURE),
    Spot(Phrase("next to", "neben"), (*_FURNITURE, *_OPENINGS[:2])),
    Spot(Phrase("behind", "hinter"), (*_FURNITURE, *_OPENINGS[:2])),
    Spot(Phrase("in front of", "vor"), (*_FURNITURE, *_OPENINGS[:2])),
)
STANDING_SPOTS = (*_COMMON_SPOTS, Spot(Phrase("in", "in"), _ROOMS))
LYING_SPOTS = (
    *_COMMON_SPOTS,
    Spot(Phrase("under", "unter"), _FURNITURE),
    Spot(Phrase("in", "in"), (*_BAGS, *_OPENINGS[2:])),
)

# --------------------------------------------------------------------------------------- times and quantities

CLOCK_TIMES = tuple(clock_time(hour, minute) for hour in range(1, 13) for minute in range(0, 60, 5))
WEEKDAYS = phrases("""
    on Monday = am Montag; on Tuesday = am Dienstag; on Wednesday = am Mittwoch; on Thursday = am Donnerstag
    on Friday = am Freitag; on Saturday = am Samstag; on Sunday = am Sonntag
""")
MONTHS = phrases("""
    January = Januar; February = Februar; March = März; April = April; May = Mai; June = Juni; July = Juli
    August = August; September = September; October = Oktober; November = November; December = Dezember
""")
COUNTS = tuple(number(n) for n in range(2, 13))
SHORT_UNITS = phrases("hours = Stunden; days = Tagen; weeks = Wochen")
LONG_UNITS = phrases("months = Monaten; years = Jahren")

PAST_TIMES = phrases("""
    yesterday = gestern; yesterday evening = gestern Abend; the day before yesterday = vorgestern
    this morning = heute Morgen; last week = letzte Woche; last Sunday = letzten Sonntag
    last weekend = letztes Wochenende
""")
DISTANT_PAST_TIMES = phrases("""
    last year = letztes Jahr; last month = letzten Monat; last summer = letzten Sommer
    last winter = letzten Winter; last spring = letzten Frühling
""")
FUTURE_TIMES = phrases("""
    tomorrow = morgen; tomorrow evening = morgen Abend; the day after tomorrow = übermorgen
    this evening = heute Abend; next week = nächste Woche; next Sunday = nächsten Sonntag; soon = bald
""")
DISTANT_FUTURE_TIMES = phrases("""
    next year = nächstes Jahr; next month = nächsten Monat; next summer = nächsten Sommer
    next winter = nächsten Winter; next spring = nächsten Frühling
""")
HABITS = phrases("""
    every day = jeden Tag; every morning = jeden Morgen; every evening = jeden Abend
    every week = jede Woche; every Sunday = jeden Sonntag; every month = jeden Monat
    once a week = einmal pro Woche; twice a month = zweimal im Monat; in summer = im Sommer
    in winter = im Winter; at the weekend = am Wochenende
""")
FREQUENCIES = phrases("""
    often = oft; always = immer; never = nie; sometimes = manchmal; usually = meistens; rarely = selten
""")

# ------------------------------------------------------------------------------------- who does what to what

Kind = Literal["task", "activity", "feeling", "event", "state"]


@dataclass(frozen=True, eq=False)
class Action:
    """What somebody can do: a verb and what may stand beside it.

    Args:
        verb: the verb.
        kind: a task is done when it is done (read a book), an activity just goes on (work), a feeling comes by
            itself (laugh), an event happens at once (find), a state holds (know). Not all have all tenses.
        objects: the accusative objects; `PERSONS` also stands for names and pronouns.
        to_whom: whether a person stands in the dative.
        preposition: the German preposition and its case; the English one belongs to the English verb.
        about: what stands after the preposition.
        complements: fixed expressions, of which one ends the clause.
        means: how to get there; before the complement in German, after it in English.
        places: where it may happen.
        memorable: whether people know in which year it was.
    """

    verb: Verb
    kind: Kind = "task"
    objects: tuple[Noun, ...] = ()
    to_whom: bool = False
    preposition: tuple[str, Case] = ("", ACCUSATIVE)
    about: tuple[Noun, ...] = ()
    complements: tuple[Phrase, ...] = ()
    means: tuple[Phrase, ...] = ()
    places: tuple[Phrase, ...] = ()
    memorable: bool = False


_INSTRUMENTS_AND_GAMES = phrases("""
    the piano = Klavier; the guitar = Gitarre; the violin = Geige; the flute = Flöte
    football = Fußball; tennis = Tennis; chess = Schach; cards = Karten
""")
_MEANS = phrases("""
    by train = mit dem Zug; by bus = mit dem Bus; by car = mit dem Auto; by bicycle = mit dem Fahrrad
    by taxi = mit dem Taxi
""")
_EATING_AT = _at("kitchen, restaurant, garden, café, park")
_READING_AT = _at("library, garden, park, living room, café")
_SHOPPING_AT = _at("supermarket, market, city")
_MEETING_AT = _at(
    "park, café, station, cinema, library, restaurant, airport, museum, beach, theatre, bus stop, church, bank"
)
_WORKING_AT = _at(
    "office, hospital, factory, school, museum, restaurant, hotel, library, bank, bakery, university, stadium"
)
_PLAYING_AT = _at("garden, park, living room, beach, village, school")
_OUTSIDE = _at("garden, park, forest, village, city")
_WALKING_TO = _to(
    "park, garden, kitchen, museum, restaurant, café, supermarket, library, cinema, theatre, bakery, bank, "
    "market, bus stop, church, station, school, home"
)
_RIDING_TO = (
    *_to(
        "office, hospital, factory, stadium, swimming pool, university, station, airport, beach, lake, city"
    ),
    *TO_CITIES,
)
_TRAVELLING_TO = (*TO_CITIES, *_TO_COUNTRIES)

# Verbs that are needed more than once, or by name.
KNOW = verb("know, knew, known", "wissen, weiß, gewusst", present="weiß weißt weiß wissen wissen")
THINK = verb("think, thought", "glauben")
SAY = verb("say, said", "sagen")
HEAR = verb("hear, heard", "hören")
LIVE = verb("live", "wohnen")
COST = verb("cost, cost", "kosten")
BELONG = verb("belong to", "gehören")
LEAVE = verb("leave, left", "ab|fahren, fährt, gefahren", with_sein=True)
ARRIVE = verb("arrive", "an|kommen, kommt, gekommen", with_sein=True)
BEGIN = verb("begin, began, begun", "beginnen, beginnt, begonnen")
END = verb("end", "enden")
OPEN = verb("open", "öffnen")
CLOSE = verb("close", "schließen, schließt, geschlossen")
TAKE_PLACE = verb("take place, took place, taken place", "statt|finden, findet, gefunden")
BE_BORN = verb("be, was, been", "werden, wird, geworden", preterite="wurde wurdest wurde wurden wurden")
RAIN = verb("rain", "regnen")
SNOW = verb("snow", "schneien")
LIE = verb("be, was, been", "liegen, liegt, gelegen", preterite="lag lagst lag lagen lagen")
STAND = verb("be, was, been", "stehen, steht, gestanden", preterite="stand standst stand standen standen")
PUT_FLAT = verb("put, put", "legen")
PUT_UPRIGHT = verb("put, put", "stellen")
GO = verb("go, went, gone", "gehen, geht, gegangen", with_sein=True)
_BORROW = verb("borrow", "aus|leihen, leiht, geliehen")
_BUY = verb("buy, bought", "kaufen")
_CARRY = verb("carry", "tragen, trägt, getragen")
_DRAW = verb("draw, drew, drawn", "zeichnen")
_DRINK = verb("drink, drank, drunk", "trinken, trinkt, getrunken")
_EAT = verb("eat, ate, eaten", "essen, isst, gegessen")
_LEARN = verb("learn", "lernen")
_LIKE = verb("like", "mögen", present="mag magst mag mögen mögen")
_MEET = verb("meet, met", "treffen, trifft, getroffen")
_COLLECT = verb("collect", "ab|holen")
_PLAY = verb("play", "spielen")
_READ = verb("read, read", "lesen, liest, gelesen")
_RIDE = verb("go, went, gone", "fahren, fährt, gefahren", with_sein=True)
_SEE = verb("see, saw, seen", "sehen, sieht, gesehen")
_SING = verb("sing, sang, sung", "singen, singt, gesungen")
_SWIM = verb("swim, swam, swum", "schwimmen, schwimmt, geschwommen", with_sein=True)
_DANCE = verb("dance", "tanzen")
_TRAVEL = verb("travel, travelled, travelled, travelling", "reisen", with_sein=True)
_VISIT = verb("visit", "besuchen")
_WAIT_FOR = verb("wait for, waited for", "warten")
_WORK = verb("work", "arbeiten")
_WRITE = verb("write, wrote, written", "schreiben, schreibt, geschrieben")

TASKS = (
    Action(_EAT, objects=_FOOD, places=_EATING_AT),
    Action(_DRINK, objects=_DRINKS, places=_EATING_AT),
    Action(verb("cook", "kochen"), objects=(*_DISHES, *_GROCERIES[1:4])),
    Action(verb("bake", "backen, backt, gebacken"), objects=_BAKED),
    Action(verb("order", "bestellen"), objects=_EDIBLES, places=_at("restaurant, café")),
    Action(verb("pay for, paid for", "bezahlen"), objects=(*_EDIBLES, *GOODS)),
    Action(verb("cut, cut", "schneiden, schneidet, geschnitten"), objects=(*_FRUIT, *_BAKED)),
    Action(_BUY, objects=GOODS, places=_SHOPPING_AT, memorable=True),
    Action(_BUY, objects=(*_EDIBLES, *_PLANTS), places=_SHOPPING_AT),
    Action(verb("sell, sold", "verkaufen"), objects=GOODS, places=_at("market, city"), memorable=True),
    Action(_READ, objects=_TEXTS, places=_READING_AT),
    Action(_WRITE, objects=_WRITINGS, places=_READING_AT),
    Action(verb("correct", "korrigieren"), objects=(*_EXERCISES, *_WRITINGS)),
    Action(verb("translate", "übersetzen"), objects=(*_TEXTS, *_EXERCISES)),
    Action(verb("explain", "erklären"), objects=_IDEAS),
    Action(verb("check", "prüfen"), objects=(*_EXERCISES, *_DEVICES)),
    Action(verb("describe", "beschreiben, beschreibt, beschrieben"), objects=(*_THOUGHTS, *SIGHTS)),
    Action(_LEARN, objects=_LANGUAGES, memorable=True),
    Action(_BORROW, objects=(*_BOOKS, *_VEHICLES)),
    Action(
        verb("give back, gave back, given back", "zurück|geben, gibt, gegeben"), objects=(*_BOOKS, *_VEHICLES)
    ),
    Action(_SING, objects=_SONG),
    Action(_DRAW, objects=(*_ANIMALS, *SIGHTS), places=_OUTSIDE),
    Action(verb("photograph", "fotografieren"), objects=(*_ANIMALS, *SIGHTS), memorable=True),
    Action(verb("build, built", "bauen"), objects=(*_HOMES, *SIGHTS), memorable=True),
    Action(verb("wash", "waschen, wäscht, gewaschen"), objects=(*_CLOTHES, *_VEHICLES, *_FRUIT)),
    Action(verb("clean", "putzen"), objects=(*_ROOMS, *_OPENINGS)),
    Action(verb("tidy up", "auf|räumen"), objects=_ROOMS),
    Action(
        verb("paint", "streichen, streicht, gestrichen"), objects=(*_OPENINGS[:2], *_ROOMS, *_FURNITURE[:6])
    ),
    Action(verb("repair", "reparieren"), objects=(*_DEVICES, *_VEHICLES), places=_at("garage, garden")),
    Action(verb("test", "testen"), objects=(*_DEVICES, *_VEHICLES)),
    Action(verb("use", "benutzen"), objects=_DEVICES),
    Action(verb("turn on", "ein|schalten"), objects=_DEVICES),
    Action(verb("turn off", "aus|schalten"), objects=_DEVICES),
    Action(verb("open", "auf|machen"), objects=_OPENABLE),
    Action(verb("close", "zu|machen"), objects=_OPENABLE[:-2]),
    Action(verb("pack", "packen"), objects=_BAGS),
    Action(verb("push", "schieben, schiebt, geschoben"), objects=(*_VEHICLES, *_FURNITURE)),
    Action(_CARRY, objects=(*_BAGS, *_FURNITURE, *_PRESENTS)),
    Action(verb("hide, hid, hidden", "verstecken"), objects=_PORTABLE),
    Action(verb("throw away, threw away, thrown away", "weg|werfen, wirft, geworfen"), objects=_PORTABLE),
    Action(verb("put on, put on", "an|ziehen, zieht, gezogen"), objects=_CLOTHES),
    Action(verb("take off, took off, taken off", "aus|ziehen, zieht, gezogen"), objects=_CLOTHES),
    Action(verb("try on", "an|probieren"), objects=_CLOTHES),
    Action(verb("feed, fed", "füttern"), objects=_TAME_ANIMALS),
    Action(verb("water", "gießen, gießt, gegossen"), objects=_PLANTS),
    Action(verb("prepare", "vor|bereiten"), objects=EVENTS),
    Action(_COLLECT, objects=_PRESENTS),
    Action(_COLLECT, objects=PERSONS, places=_at("station, airport, bus stop")),
    Action(_VISIT, objects=PERSONS, memorable=True),
    Action(_VISIT, objects=SIGHTS, memorable=True),
    Action(_MEET, objects=PERSONS, places=_MEETING_AT, memorable=True),
    Action(verb("invite", "ein|laden, lädt, geladen"), objects=PERSONS),
    Action(verb("call", "an|rufen, ruft, gerufen"), objects=PERSONS),
    Action(verb("ask", "fragen"), objects=PERSONS),
    Action(verb("greet", "begrüßen"), objects=PERSONS),
    Action(verb("wake, woke, woken", "wecken"), objects=PERSONS),
    Action(verb("help", "helfen, hilft, geholfen"), to_whom=True),
    Action(verb("thank", "danken"), to_whom=True),
    Action(verb("answer", "antworten"), to_whom=True),
    Action(verb("congratulate", "gratulieren"), to_whom=True),
    Action(verb("give, gave, given", "geben, gibt, gegeben"), objects=_PORTABLE, to_whom=True),
    Action(verb("show, showed, shown", "zeigen"), objects=(*GOODS, *_TEXTS), to_whom=True),
    Action(verb("send, sent", "schicken"), objects=(*_WRITINGS, *_PRESENTS, *_BOOKS), to_whom=True),
    Action(verb("bring, brought", "bringen, bringt, gebracht"), objects=(*_EDIBLES, *_VESSELS), to_whom=True),
    Action(
        verb("lend, lent", "leihen, leiht, geliehen"),
        objects=(*_VEHICLES, *_BOOKS, *_SMALL_THINGS),
        to_whom=True,
    ),
    Action(verb("tell, told", "erzählen"), objects=_STORIES, to_whom=True),
    Action(
        verb("take part in, took part in, taken part in", "teil|nehmen, nimmt, genommen"),
        preposition=("an", DATIVE),
        about=EVENTS,
    ),
    Action(GO, complements=_WALKING_TO),
    Action(verb("run, ran, run", "laufen, läuft, gelaufen", with_sein=True), complements=_WALKING_TO),
    Action(verb("drive, drove, driven", "fahren, fährt, gefahren", with_sein=True), complements=_RIDING_TO),
    Action(_RIDE, complements=_RIDING_TO, means=_MEANS),
    Action(
        verb("fly, flew, flown", "fliegen, fliegt, geflogen", with_sein=True),
        complements=_TRAVELLING_TO,
        memorable=True,
    ),
    Action(_TRAVEL, complements=_TRAVELLING_TO, memorable=True),
)
_ACTIVITIES = (
    Action(_WORK, "activity", places=_WORKING_AT),
    Action(_PLAY, "activity", complements=_INSTRUMENTS_AND_GAMES, places=_PLAYING_AT),
    Action(_DANCE, "activity", places=_PLAYING_AT),
    Action(_SWIM, "activity", places=_at("lake, swimming pool")),
    Action(verb("wait", "warten"), "activity", places=_MEETING_AT),
    Action(_WAIT_FOR, "activity", preposition=("auf", ACCUSATIVE), about=PERSONS, places=_MEETING_AT),
    Action(_WAIT_FOR, "activity", preposition=("auf", ACCUSATIVE), about=TRAIN_AND_BUS),
    Action(verb("look for", "suchen"), "activity", (*_PORTABLE, *_PETS, *_CLOTHES), places=_PLAYING_AT),
    Action(
        verb("look after", "auf|passen"),
        "activity",
        preposition=("auf", ACCUSATIVE),
        about=(*_TAME_ANIMALS, *_BAGS),
    ),
    Action(
        verb("talk to", "sprechen, spricht, gesprochen"),
        "activity",
        preposition=("mit", DATIVE),
        about=PERSONS,
    ),
    Action(
        verb("talk about", "sprechen, spricht, gesprochen"),
        "activity",
        preposition=("über", ACCUSATIVE),
        about=(*_FILM, *_TEXTS, *_IDEAS, *EVENTS),
    ),
    Action(verb("dance with", "tanzen"), "activity", preposition=("mit", DATIVE), about=PERSONS),
    Action(
        verb("play with", "spielen"), "activity", preposition=("mit", DATIVE), about=_PETS, places=_PLAYING_AT
    ),
    Action(verb("listen to", "zu|hören"), "activity", to_whom=True),
    Action(verb("follow", "folgen", with_sein=True), "activity", to_whom=True),
    Action(verb("wear, wore, worn", "tragen, trägt, getragen"), "activity", _CLOTHES),
    Action(
        verb("watch television", "fern|sehen, sieht, gesehen"),
        "activity",
        places=_at("living room, bedroom, hotel, home"),
    ),
    Action(verb("go shopping, went shopping, gone shopping", "ein|kaufen"), "activity", places=_SHOPPING_AT),
    Action(
        verb("sleep, slept", "schlafen, schläft, geschlafen"),
        "activity",
        places=_at("bedroom, living room, garden, hotel, home"),
    ),
    Action(
        verb("stay", "bleiben, bleibt, geblieben", with_sein=True),
        "activity",
        complements=(*_at("home, hotel, garden, kitchen, village, city, hospital, office"), *AT_CITIES),
    ),
)
_FEELINGS = (
    Action(verb("laugh", "lachen"), "feeling", places=_at("cinema, theatre")),
    Action(
        verb("laugh about", "lachen"), "feeling", preposition=("über", ACCUSATIVE), about=(*_STORIES, *_FILM)
    ),
    Action(verb("cry", "weinen"), "feeling", places=_at("bedroom, kitchen, cinema")),
    Action(
        verb("think of, thought of", "denken, denkt, gedacht"),
        "feeling",
        preposition=("an", ACCUSATIVE),
        about=PERSONS,
    ),
    Action(
        verb("dream of", "träumen"),
        "feeling",
        preposition=("von", DATIVE),
        about=(*_HOMES, *_VEHICLES, *_ANIMALS),
    ),
)
_EVENTS = (
    Action(
        verb("find, found", "finden, findet, gefunden"), "event", (*_PORTABLE, *_PETS), places=_PLAYING_AT
    ),
    Action(verb("lose, lost", "verlieren, verliert, verloren"), "event", _PORTABLE, places=_SHOPPING_AT),
    Action(
        verb("forget, forgot, forgotten", "vergessen, vergisst, vergessen"), "event", (*_PORTABLE, *_TERMS)
    ),
    Action(_SEE, "event", PERSONS, places=_MEETING_AT),
    Action(_SEE, "event", (*_ANIMALS, *SIGHTS, *_FILM)),
    Action(HEAR, "event", (*_SONG, *_STORIES)),
    Action(verb("recognise", "erkennen, erkennt, erkannt"), "event", PERSONS),
    Action(verb("receive", "bekommen, bekommt, bekommen"), "event", (*_WRITINGS, *_PRESENTS)),
    Action(verb("break, broke, broken", "kaputt|machen"), "event", (*_VESSELS, *_DEVICES, *_OPENINGS[:2])),
    Action(verb("steal, stole, stolen", "stehlen, stiehlt, gestohlen"), "event", (*_PORTABLE, *_VEHICLES)),
    Action(verb("get up, got up", "auf|stehen, steht, gestanden", with_sein=True), "event"),
    Action(verb("wake up, woke up, woken up", "auf|wachen", with_sein=True), "event"),
    Action(
        verb("fall asleep, fell asleep, fallen asleep", "ein|schlafen, schläft, geschlafen", with_sein=True),
        "event",
    ),
    Action(ARRIVE, "event", places=_at("station, airport, hotel")),
    Action(
        verb("come back, came back, come back", "zurück|kommen, kommt, gekommen", with_sein=True), "event"
    ),
)
_STATES = (
    Action(verb("know, knew, known", "kennen, kennt, gekannt"), "state", PERSONS),
    Action(
        verb("know, knew, known", "kennen, kennt, gekannt"), "state", (*_TERMS, *_SONG, *_FILM, *_STORIES)
    ),
    Action(_LIKE, "state", PERSONS),
    Action(_LIKE, "state", (*_EDIBLES, *_SONG, *_FILM, *_CLOTHES)),
    Action(verb("need", "brauchen"), "state", (*GOODS, *_EDIBLES)),
    Action(HAVE, "state", (*GOODS, *_TAME_ANIMALS, *_IDEAS)),
    Action(verb("understand, understood", "verstehen, versteht, verstanden"), "state", (*_IDEAS, *_WRITINGS)),
    Action(verb("speak, spoke, spoken", "sprechen, spricht, gesprochen"), "state", _LANGUAGES),
    Action(verb("trust", "vertrauen"), "state", to_whom=True),
    Action(LIVE, "state", complements=(*AT_CITIES, *_at("village, city"))),
    Action(verb("come, came, come", "kommen, kommt, gekommen"), "state", complements=_FROM_COUNTRIES),
)

DUTIES = (*TASKS, *_ACTIVITIES)
DOINGS = (*DUTIES, *_FEELINGS, *_EVENTS)
ACTIONS = (*DOINGS, *_STATES)
WITH_THINGS = tuple(
    action for action in ACTIONS if action.objects and action.objects not in (PERSONS, _LANGUAGES)
)
# "Was trägt er?" does not tell whether he wears it or carries it.
WITH_TELLING_VERB = tuple(action for action in WITH_THINGS if action.verb is not _CARRY)
WITH_PERSONS = tuple(action for action in ACTIONS if action.objects is PERSONS)
WITH_PLACES = tuple(action for action in ACTIONS if action.places)
WITH_GOALS = tuple(action for action in TASKS if action.complements and not action.means)
# What a thing can have been through, and what a friend can be asked to do.
THINGS_DONE = tuple(action for action in DOINGS if action in WITH_THINGS and not action.to_whom)
FAVOURS = tuple(action for action in TASKS if action.objects or action.to_whom)

PLEASURES = (
    Action(_EAT, objects=(*_FRUIT, *_DISHES, *_BAKED, *_GROCERIES)),
    Action(_DRINK, objects=_DRINKS),
    Action(_READ, objects=_TEXTS),
    Action(_WRITE, objects=_WRITINGS),
    Action(_SING, objects=_SONG),
    Action(_DRAW, objects=_ANIMALS),
    Action(_LEARN, objects=_LANGUAGES),
    Action(_PLAY, complements=_INSTRUMENTS_AND_GAMES),
    Action(_SWIM, places=_at("lake, swimming pool")),
    Action(_DANCE, places=_at("garden, beach, park")),
    Action(_WORK, places=_WORKING_AT),
    Action(GO, complements=_WALKING_TO),
    Action(_TRAVEL, complements=_TRAVELLING_TO),
    Action(_RIDE, complements=_RIDING_TO, means=_MEANS),
)


class Errand(NamedTuple):
    """Where people go, and what for."""

    goals: tuple[Phrase, ...]
    action: Action


ERRANDS = (
    Errand(_to("supermarket, market, city"), Action(_BUY, objects=_EDIBLES)),
    Errand(_to("city, market"), Action(_BUY, objects=(*_CLOTHES, *_PLANTS))),
    Errand(_to("bakery"), Action(_BUY, objects=_BAKED)),
    Errand(_to("library"), Action(_BORROW, objects=_BOOKS)),
    Errand(_to("station, airport, bus stop"), Action(_COLLECT, objects=PERSONS)),
    Errand(_to("park, café, restaurant, cinema, theatre"), Action(_MEET, objects=PERSONS)),
    Errand(_to("hospital, hotel, village"), Action(_VISIT, objects=PERSONS)),
    Errand(_to("park, garden, beach"), Action(_PLAY, complements=_INSTRUMENTS_AND_GAMES)),
    Errand(_to("restaurant, kitchen"), Action(_EAT, objects=_FOOD)),
    Errand(_to("café, kitchen, garden"), Action(_DRINK, objects=_DRINKS)),
    Errand(_to("lake, swimming pool"), Action(_SWIM)),
    Errand(_to("cinema"), Action(_SEE, objects=_FILM)),
)
